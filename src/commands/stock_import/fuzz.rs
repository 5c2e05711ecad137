//! Fuzzes the reader of files of products.

use std::io::{Seek as _, Write as _};

use super::{Path, Rows, check};
use crate::reader_fuzz::fuzz;

#[test]
fn files_of_products_are_read_or_refused() {
    let file = std::cell::RefCell::new(tempfile::tempfile().unwrap());

    fuzz("products", |bytes| {
        let mut file = file.borrow_mut();
        file.set_len(0).unwrap();
        file.rewind().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        let checked = check(Path::new("products.csv"), &file);
        file.rewind().unwrap();
        match checked {
            // The second pass finds what the first has counted.
            Ok(rows) => {
                let products = Rows::read(&file).unwrap().map(|row| row.product.unwrap());
                assert_eq!(products.count(), rows);
                "read".to_owned()
            }
            Err(error) => format!("{error:#}"),
        }
    });
}
