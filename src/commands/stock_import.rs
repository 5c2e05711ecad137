//! Imports a CSV file of products: all of it, or nothing if a row is wrong.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Seek as _},
    path::Path,
};

use anyhow::{Context as _, anyhow, bail};
use chrono::Utc;
use csv::{ReaderBuilder, StringRecord, Trim};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{Answer, Output, print::Faults};
use crate::{
    crash_point::crash_point,
    domain::{MAX_AVAILABLE, ProductId},
    store::{ImportSummary, Product, StockStore},
};

/// Products of one transaction.
const CHUNK: usize = 1_000;
const MAX_NAME_CHARS: usize = 255;
/// Most wrong rows that are printed. The others are counted.
const MAX_ERRORS: usize = 20;
const COLUMNS: [&str; 3] = ["product_id", "name", "available"];

/// Imports a file. Reads it twice: first it checks every row, so that a wrong row does not leave
/// half of the file imported. Fails with an error for each wrong row.
pub(super) async fn run(store: &StockStore, path: &Path, output: Output) -> anyhow::Result<Answer> {
    let mut file = open(path).with_context(|| path.display().to_string())?;
    let rows = check(path, &file)?;
    file.rewind()?;
    let style = ProgressStyle::with_template("importing {bar:40} {pos}/{len} products, {per_sec}")?;
    let progress = ProgressBar::new(rows as u64).with_style(style);
    let mut products = Rows::read(&file)?;
    let (mut summary, mut imported) = (ImportSummary::default(), 0);
    while imported < rows {
        let partly = || {
            format!("{imported} of {rows} products were imported; it is safe to repeat the import")
        };
        let chunk = products.by_ref().take(CHUNK).map(|row| row.product);
        let chunk = chunk.collect::<anyhow::Result<Vec<_>>>().with_context(partly)?;
        if chunk.is_empty() {
            bail!("{}: the file changed while it was read; {}", path.display(), partly());
        }
        let done = store.import(&chunk, Utc::now()).await.with_context(partly)?;
        crash_point("import.committed");
        summary.added += done.added;
        summary.changed += done.changed;
        summary.unchanged += done.unchanged;
        imported += chunk.len();
        progress.inc(chunk.len() as u64);
    }
    progress.finish_and_clear();
    let ImportSummary { added, changed, unchanged } = summary;
    match output {
        Output::Json => {
            println!("{}", json!({"added": added, "changed": changed, "unchanged": unchanged}));
        }
        Output::Text => {
            println!("{added} products added, {changed} changed, {unchanged} unchanged");
        }
    }
    Ok(Answer::Done)
}

/// Opens a file that can be read twice. Copies a pipe to a temporary file.
fn open(path: &Path) -> io::Result<File> {
    let mut file = File::open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    let mut copy = tempfile::tempfile()?;
    io::copy(&mut file, &mut copy)?;
    copy.rewind()?;
    Ok(copy)
}

/// Returns the number of products. Fails with the errors of all wrong rows.
fn check(path: &Path, file: &File) -> anyhow::Result<usize> {
    let (mut lines, mut errors, mut wrong) = (HashMap::new(), Vec::new(), 0_usize);
    let mut complain = |error: String| {
        wrong += 1;
        if wrong <= MAX_ERRORS {
            errors.push(error);
        }
    };
    match Rows::read(file) {
        Err(error) => complain(format!("line 1: {error:#}")),
        Ok(rows) => {
            for Row { line, product } in rows {
                match product {
                    Err(error) => complain(format!("line {line}: {error:#}")),
                    Ok(product) => match lines.get(&product.id) {
                        Some(first) => {
                            complain(format!(
                                "line {line}: product {} is on line {first} already",
                                product.id
                            ));
                        }
                        None => drop(lines.insert(product.id, line)),
                    },
                }
            }
        }
    }
    if wrong == 0 {
        return Ok(lines.len());
    }
    if wrong > MAX_ERRORS {
        errors.push(format!("and {} lines more", wrong - MAX_ERRORS));
    }
    Err(Faults { what: format!("{}: nothing was imported", path.display()), errors }.into())
}

/// A row of a file.
struct Row {
    /// The number of its line, from 1.
    line: u64,
    /// Fails with what is wrong in the row.
    product: anyhow::Result<Product>,
}

/// The rows of a file after the header.
struct Rows<'a> {
    records: csv::StringRecordsIntoIter<&'a File>,
    /// The position of each of [`COLUMNS`] in a row.
    columns: [usize; 3],
}

impl<'a> Rows<'a> {
    /// Reads the header. Fails unless it names each column once, in any order.
    fn read(file: &'a File) -> anyhow::Result<Self> {
        let mut reader = ReaderBuilder::new().flexible(true).trim(Trim::All).from_reader(file);
        let header: Vec<_> = reader.headers()?.iter().map(str::to_owned).collect();
        let columns = COLUMNS.map(|column| header.iter().position(|name| name == column));
        let [Some(product_id), Some(name), Some(available)] = columns else {
            bail!(
                "the columns must be {}, in any order; found {}",
                COLUMNS.join(", "),
                header.join(", ")
            );
        };
        if header.len() != COLUMNS.len() {
            bail!(
                "the columns must be {} and no others; found {}",
                COLUMNS.join(", "),
                header.join(", ")
            );
        }
        Ok(Self { records: reader.into_records(), columns: [product_id, name, available] })
    }

    fn parse(&self, record: &StringRecord) -> anyhow::Result<Product> {
        let fields = self.columns.map(|column| record.get(column));
        let ([Some(product_id), Some(name), Some(available)], 3) = (fields, record.len()) else {
            bail!("found {} fields, expected {}", record.len(), COLUMNS.len());
        };
        let product_id = ProductId::parse(product_id)?;
        if name.chars().count() > MAX_NAME_CHARS {
            bail!("expected at most {MAX_NAME_CHARS} characters in the name of {product_id}");
        }
        match available.parse() {
            Ok(available @ 0..=MAX_AVAILABLE) => {
                Ok(Product { id: product_id, name: name.to_owned(), available })
            }
            _ => bail!(
                "expected a whole number from 0 to {MAX_AVAILABLE} as available of {product_id}, \
                 found {available:?}"
            ),
        }
    }
}

impl Iterator for Rows<'_> {
    type Item = Row;

    fn next(&mut self) -> Option<Self::Item> {
        let line = |position: Option<&csv::Position>| position.map_or(0, csv::Position::line);
        Some(match self.records.next()? {
            Ok(record) => Row { line: line(record.position()), product: self.parse(&record) },
            Err(error) => Row { line: line(error.position()), product: Err(anyhow!(error)) },
        })
    }
}

#[cfg(test)]
mod fuzz;
