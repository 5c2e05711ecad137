use std::fmt::Write as _;

use super::{check_page, code, table};
use crate::store::tables::{ORDER_STORE, STOCK_STORE, Table};

#[test]
fn the_page_of_tables_is_the_list_of_tables() {
    let mut body = "The two stores may be one database. Times are UTC. Orders have UUIDv7 ids, \
so a primary key of ids\nis in the order of age.\n"
        .to_owned();
    for (store, tables) in [("Order store", ORDER_STORE), ("Stock store", STOCK_STORE)] {
        let rows = tables.iter().map(|table| {
            [
                code(table.name),
                table.rows.to_owned(),
                table.removed.to_owned(),
                table.readers.to_owned(),
            ]
        });
        let head = ["table", "a row is", "a row is removed", "who may read it"];
        writeln!(body, "\n## {store}\n\n{}", self::table(head, rows)).unwrap();
        body +=
            &self::table(["table", "column", "type", "meaning"], tables.iter().flat_map(columns));
    }

    check_page("tables.md", "Tables", "src/store/tables.rs", &body);
}

fn columns(table: &Table) -> impl Iterator<Item = [String; 4]> {
    table.columns.iter().map(|[name, kind, meaning]| {
        [code(table.name), code(name), code(kind), (*meaning).to_owned()]
    })
}
