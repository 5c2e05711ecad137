use std::path::PathBuf;

use chrono::Utc;
use clap::Subcommand;
use serde_json::json;

use super::{
    Answer, Output, print::complaint, process, stock_adjust, stock_adjust::AdjustArgs,
    stock_import, stock_movements, stock_publish,
};
use crate::{
    config::Config,
    domain::{MAX_AVAILABLE, ProductId},
    store::{Product, Restocked, StockStore},
};

#[derive(Debug, Subcommand)]
pub(super) enum StockCommand {
    /// Set products to the quantities of a CSV file with the columns `product_id`, `name` and
    /// `available`
    ///
    /// The columns may be in any order. If any row is wrong, every wrong row is reported and
    /// nothing is imported.
    Import {
        /// CSV file, or /dev/stdin
        file: PathBuf,
    },
    /// Show products: those that are named, or all
    Show {
        /// Ids of products
        #[arg(value_parser = ProductId::parse)]
        ids: Vec<ProductId>,
    },
    /// Add units of a product
    Restock {
        /// Id of an existing product
        #[arg(value_parser = ProductId::parse)]
        id: ProductId,
        /// Number of units to add
        #[arg(value_parser = clap::value_parser!(i64).range(1..=MAX_AVAILABLE))]
        quantity: i64,
    },
    /// Adjust the stock of a product: by a difference, or to a number
    Adjust(AdjustArgs),
    /// List the changes of a product's stock that no order made, oldest first
    Movements {
        /// Id of a product
        #[arg(value_parser = ProductId::parse)]
        id: ProductId,
        /// Begin after this movement
        #[arg(long, value_name = "MOVEMENT", default_value_t = 0)]
        after: i64,
    },
    /// Publish the levels of products to `topics.stock_levels`: those that are named, or all
    ///
    /// Use it once after `topics.stock_levels` was set, and after the topic has lost messages.
    Publish {
        /// Ids of products
        #[arg(value_parser = ProductId::parse)]
        ids: Vec<ProductId>,
    },
}

pub(super) async fn run(
    command: StockCommand,
    config: &Config,
    output: Output,
) -> anyhow::Result<Answer> {
    let metrics = process::metrics()?;
    let store = process::open_stock_store(config, &metrics)?;
    match command {
        StockCommand::Import { file } => stock_import::run(&store, &file, output).await,
        StockCommand::Show { ids } => show(&store, &ids, output).await,
        StockCommand::Restock { id, quantity } => restock(&store, &id, quantity, output).await,
        StockCommand::Adjust(args) => stock_adjust::run(&store, args, output).await,
        StockCommand::Movements { id, after } => {
            stock_movements::run(&store, &id, after, output).await
        }
        StockCommand::Publish { ids } => {
            stock_publish::run(store, config, metrics, ids, output).await
        }
    }
}

async fn show(store: &StockStore, ids: &[ProductId], output: Output) -> anyhow::Result<Answer> {
    let products =
        if ids.is_empty() { all(store).await? } else { store.find_products(&sorted(ids)).await? };
    match output {
        Output::Json => {
            let rows = products.iter().map(
                |p| json!({"product_id": p.id.as_str(), "name": p.name, "available": p.available}),
            );
            println!("{}", json!(rows.collect::<Vec<_>>()));
        }
        Output::Text => {
            for product in &products {
                println!("{:40} {:>16}  {}", product.id, product.available, product.name);
            }
        }
    }
    for id in ids.iter().filter(|id| !products.iter().any(|p| p.id == **id)) {
        complaint(&format!("no product {id}"), output);
    }
    let all_found = sorted(ids).len() <= products.len();
    Ok(if all_found { Answer::Done } else { Answer::No })
}

fn sorted(ids: &[ProductId]) -> Vec<ProductId> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    ids
}

async fn all(store: &StockStore) -> anyhow::Result<Vec<Product>> {
    let mut products: Vec<Product> = Vec::new();
    loop {
        let last = products.last().map(|product| product.id.clone());
        let page = store.list_products(last.as_ref(), 10_000).await?;
        if page.is_empty() {
            return Ok(products);
        }
        products.extend(page);
    }
}

async fn restock(
    store: &StockStore,
    id: &ProductId,
    quantity: i64,
    output: Output,
) -> anyhow::Result<Answer> {
    let available = match store.restock(id, quantity, Utc::now()).await? {
        Restocked::Available(available) => available,
        Restocked::UnknownProduct => {
            complaint(&format!("no product {id}"), output);
            return Ok(Answer::No);
        }
        Restocked::AboveMax => {
            complaint(&format!("{id} would have more than {MAX_AVAILABLE} available"), output);
            return Ok(Answer::No);
        }
    };
    match output {
        Output::Json => println!("{}", json!({"product_id": id.as_str(), "available": available})),
        Output::Text => println!("{id}: {available} available"),
    }
    Ok(Answer::Done)
}
