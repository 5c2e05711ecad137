use std::{collections::HashSet, path::PathBuf};

use anyhow::{Context as _, bail};
use chrono::Utc;
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{Answer, Output, process};
use crate::{
    config::Config,
    domain::{MAX_AVAILABLE, ProductId},
    store::{ImportSummary, Product, StockStore, StoreError},
};

const CHUNK: usize = 1_000;
const MAX_NAME_CHARS: usize = 255;

#[derive(Debug, Subcommand)]
pub enum StockCommand {
    /// Bring products to the quantities of a CSV file with the columns `product_id`, `name` and `available`
    Import { file: PathBuf },
    /// Show products, all of them unless some are named
    Show {
        #[arg(value_parser = ProductId::parse)]
        ids: Vec<ProductId>,
    },
    /// Add units of a product
    Restock {
        #[arg(value_parser = ProductId::parse)]
        id: ProductId,
        #[arg(value_parser = clap::value_parser!(i64).range(1..=MAX_AVAILABLE))]
        quantity: i64,
    },
}

pub async fn run(command: StockCommand, config: &Config, output: Output) -> anyhow::Result<Answer> {
    let store = process::open_stock_store(config, &process::metrics()?)?;
    match command {
        StockCommand::Import { file } => import(&store, &file, output).await,
        StockCommand::Show { ids } => show(&store, &ids, output).await,
        StockCommand::Restock { id, quantity } => restock(&store, &id, quantity, output).await,
    }
}

/// Reads the file twice: a row that is wrong anywhere in it must not leave half of it imported.
async fn import(store: &StockStore, file: &PathBuf, output: Output) -> anyhow::Result<Answer> {
    let rows = check(file).with_context(|| format!("{}: nothing was imported", file.display()))?;
    let style = ProgressStyle::with_template("importing {bar:40} {pos}/{len} products, {per_sec}")?;
    let progress = ProgressBar::new(rows as u64).with_style(style);
    let mut summary = ImportSummary::default();
    let mut products = read(file)?.map(|row| row.map(|(_, product)| product));
    loop {
        let chunk = products.by_ref().take(CHUNK).collect::<anyhow::Result<Vec<_>>>()?;
        if chunk.is_empty() {
            break;
        }
        let done = store.import(&chunk, Utc::now()).await?;
        summary.added += done.added;
        summary.changed += done.changed;
        summary.unchanged += done.unchanged;
        progress.inc(chunk.len() as u64);
    }
    progress.finish_and_clear();
    let ImportSummary { added, changed, unchanged } = summary;
    match output {
        Output::Json => println!("{}", json!({"added": added, "changed": changed, "unchanged": unchanged})),
        Output::Text => println!("{added} products added, {changed} changed, {unchanged} unchanged"),
    }
    Ok(Answer::Done)
}

/// Answers how many rows there are. Fails at the first that is wrong.
fn check(file: &PathBuf) -> anyhow::Result<usize> {
    let mut seen = HashSet::new();
    for row in read(file)? {
        let (line, product) = row?;
        if let Some(twice) = seen.replace(product.product_id) {
            bail!("line {line}: product {twice} stands twice");
        }
    }
    Ok(seen.len())
}

/// The products of a file, each with its line.
fn read(file: &PathBuf) -> anyhow::Result<impl Iterator<Item = anyhow::Result<(u64, Product)>>> {
    let mut reader = csv::Reader::from_path(file).with_context(|| file.display().to_string())?;
    let expected = ["product_id", "name", "available"];
    if reader.headers()?.iter().ne(expected) {
        bail!("line 1: the columns must be {}", expected.join(","));
    }
    Ok(reader.into_records().map(|record| {
        let record = record?;
        let line = record.position().map_or(0, csv::Position::line);
        let product = parse(&record).with_context(|| format!("line {line}"))?;
        Ok((line, product))
    }))
}

fn parse(record: &csv::StringRecord) -> anyhow::Result<Product> {
    let product_id = ProductId::parse(&record[0])?;
    let name = record[1].to_owned();
    if name.chars().count() > MAX_NAME_CHARS {
        bail!("the name of {product_id} has more than {MAX_NAME_CHARS} characters");
    }
    match record[2].parse() {
        Ok(available @ 0..=MAX_AVAILABLE) => Ok(Product { product_id, name, available }),
        _ => bail!("available {:?} of {product_id} is not a whole number from 0 to {MAX_AVAILABLE}", &record[2]),
    }
}

async fn show(store: &StockStore, ids: &[ProductId], output: Output) -> anyhow::Result<Answer> {
    let products = if ids.is_empty() { all(store).await? } else { store.find_products(&sorted(ids)).await? };
    match output {
        Output::Json => {
            let rows = products
                .iter()
                .map(|p| json!({"product_id": p.product_id.as_str(), "name": p.name, "available": p.available}));
            println!("{}", json!(rows.collect::<Vec<_>>()));
        }
        Output::Text => {
            for product in &products {
                println!("{:40} {:>16}  {}", product.product_id, product.available, product.name);
            }
        }
    }
    for id in ids.iter().filter(|id| !products.iter().any(|p| p.product_id == **id)) {
        eprintln!("no product {id}");
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
        let last = products.last().map(|product| product.product_id.clone());
        let page = store.list_products(last.as_ref(), 10_000).await?;
        if page.is_empty() {
            return Ok(products);
        }
        products.extend(page);
    }
}

async fn restock(store: &StockStore, id: &ProductId, quantity: i64, output: Output) -> anyhow::Result<Answer> {
    let available = match store.restock(id, quantity, Utc::now()).await {
        Ok(Some(available)) => available,
        Ok(None) => {
            eprintln!("no product {id}");
            return Ok(Answer::No);
        }
        Err(StoreError::Refused(why)) => {
            eprintln!("{why}");
            return Ok(Answer::No);
        }
        Err(error) => return Err(error.into()),
    };
    match output {
        Output::Json => println!("{}", json!({"product_id": id.as_str(), "available": available})),
        Output::Text => println!("{id}: {available} available"),
    }
    Ok(Answer::Done)
}
