//! The table of the document, and the rows of the order store that it expects.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use sqlx::{Connection as _, MySqlConnection, Row as _};
use stocklock::domain::OrderId;

use super::events;
use crate::harness::World;

const DOCUMENT: &str = include_str!("../../../docs/order-lifecycle.md");

/// An order of a column of the table.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) name: &'static str,
    state: &'static str,
    wants_hold: bool,
}

pub(super) const COLUMNS: [Column; 6] = [
    Column { name: "`PENDING`", state: "PENDING", wants_hold: false },
    Column { name: "`PENDING`, hold", state: "PENDING", wants_hold: true },
    Column { name: "`RESERVED`", state: "RESERVED", wants_hold: true },
    Column { name: "`COMPLETED`", state: "COMPLETED", wants_hold: false },
    Column { name: "`FAILED`", state: "FAILED", wants_hold: false },
    Column { name: "`CANCELLED`", state: "CANCELLED", wants_hold: false },
];

/// A row of the table: an event, and its cells in the order of [`COLUMNS`].
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// The event and its source: `COMPLETED of worker`.
    pub(super) name: String,
    pub(super) event: String,
    pub(super) source: String,
    cells: Vec<String>,
}

/// The rows of the document's table of effects.
pub(super) fn rows() -> Vec<Row> {
    let head = "| event | source | `PENDING` |";
    let table = DOCUMENT.lines().skip_while(|line| !line.starts_with(head)).skip(2);
    let row = |line: &str| {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let event = cells[0].trim_matches('`').to_owned();
        let (source, cells) = (cells[1].to_owned(), cells[2..8].iter().copied());
        let cells = cells.map(str::to_owned).collect();
        Row { name: format!("{event} of {source}"), event, source, cells }
    };
    table.take_while(|line| line.starts_with('|')).map(row).collect()
}

/// An order as its rows in the order store show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    state: String,
    wants_hold: bool,
    reason: Option<String>,
    /// In seconds from now, rounded down to 50.
    pub(super) hold_ends_in: Option<i64>,
    owes_release: bool,
    /// The announced states, each with its source.
    announced: BTreeSet<(String, String)>,
}

impl Column {
    /// The order before the events. It owes a release if one of them ends that.
    pub(super) fn seen(&self, events: &[Row]) -> Seen {
        let ends = |row: &Row| row.cells.iter().any(|cell| cell == "end of the release");
        let is_final = ["FAILED", "CANCELLED"].contains(&self.state);
        Seen {
            state: self.state.to_owned(),
            wants_hold: self.wants_hold,
            reason: None,
            hold_ends_in: (self.state == "RESERVED").then_some(events::FIRST_HOLD),
            owes_release: is_final && events.iter().any(ends),
            announced: BTreeSet::new(),
        }
    }

    /// The statements that write the order.
    pub(super) fn insert(&self, id: OrderId, now: DateTime<Utc>, seen: &Seen) -> String {
        let (hex, now) = (id.uuid().simple(), now.format("%F %T%.3f"));
        let hold = if self.wants_hold { events::WORKER_HOLD.to_string() } else { "NULL".into() };
        let order = format!(
            "INSERT INTO orders (order_id, status, `lines`, created_at, updated_at, hold_seconds)
             VALUES (UNHEX('{hex}'), '{}', '[[\"a\",1]]', '{now}', '{now}', {hold});",
            self.state
        );
        let hold = seen.hold_ends_in.map(|seconds| {
            format!(
                "INSERT INTO holds VALUES (UNHEX('{hex}'), '{now}' + INTERVAL {seconds} SECOND);"
            )
        });
        let release = seen.owes_release.then(|| {
            format!(
                "INSERT INTO owed_releases (order_id, owed_at, due_at)
                 VALUES (UNHEX('{hex}'), '{now}', '{now}');"
            )
        });
        [Some(order), hold, release].into_iter().flatten().collect()
    }
}

impl Seen {
    /// The order after the event of a row, as the row's cell says.
    pub(super) fn after(&self, row: &Row) -> Self {
        let is_column = |column: &Column| {
            let is_pending = self.state == "PENDING";
            column.state == self.state && (!is_pending || column.wants_hold == self.wants_hold)
        };
        let column = COLUMNS.iter().position(is_column).expect("a column");
        let cell = row.cells[column].as_str();
        let mut after = self.clone();
        if let Some(state) = cell.strip_prefix("→ `").and_then(|rest| rest.split('`').next()) {
            state.clone_into(&mut after.state);
            after.reason =
                events::reason(row).filter(|_| state == "FAILED" || state == "CANCELLED");
            after.hold_ends_in = (state == "RESERVED").then_some(events::WORKER_HOLD);
        }
        if cell.contains("(`EXPIRED`)") {
            after.reason = Some("EXPIRED".to_owned());
        }
        if cell.contains("announced") {
            let source = if row.source == "client" { "ingest" } else { "compensator" };
            after.announced.insert((after.state.clone(), source.to_owned()));
        }
        if cell.split(", ").any(|part| part == "release") {
            after.owes_release = true;
        }
        match cell {
            "end of the release" => after.owes_release = false,
            "no hold any more" => after.wants_hold = false,
            "the hold ends later" => after.hold_ends_in = Some(events::LATER_HOLD),
            _ => {}
        }
        after
    }

    /// A pending order whose hold would begin too late.
    pub(super) fn expired(before: Self) -> Self {
        Self {
            state: "CANCELLED".into(),
            reason: Some("EXPIRED".into()),
            owes_release: true,
            announced: BTreeSet::from([("CANCELLED".into(), "compensator".into())]),
            ..before
        }
    }

    /// All orders of the store.
    pub(super) async fn of_all(world: &World, now: DateTime<Utc>) -> BTreeMap<OrderId, Self> {
        let url = world.config.order_store.url.expose();
        let mut conn = MySqlConnection::connect(url).await.expect("the order store");
        let sql = "SELECT LOWER(HEX(o.order_id)) AS id, CONCAT(o.status) AS state, o.reason,
                          o.hold_seconds IS NOT NULL AND NOT o.is_hold_confirmed AS wants_hold,
                          h.expires_at, r.order_id IS NOT NULL AS owed,
                          (SELECT GROUP_CONCAT(a.status, '/', a.source) FROM announcements AS a
                           WHERE a.order_id = o.order_id) AS announced
                   FROM orders AS o LEFT JOIN holds AS h ON h.order_id = o.order_id
                   LEFT JOIN owed_releases AS r ON r.order_id = o.order_id";
        let rows = sqlx::query(sql).fetch_all(&mut conn).await.expect("the orders");
        let text = |row: &sqlx::mysql::MySqlRow, column: &str| {
            row.try_get_unchecked::<Option<String>, _>(column).expect("a text")
        };
        let seen = |row: &sqlx::mysql::MySqlRow| {
            let id = uuid::Uuid::try_parse(&text(row, "id").unwrap()).unwrap().to_string();
            let expires_at: Option<DateTime<Utc>> = row.try_get("expires_at").unwrap();
            let announced = text(row, "announced").unwrap_or_default();
            let announced = announced.split(',').filter_map(|one| one.split_once('/'));
            let seen = Self {
                state: text(row, "state").unwrap(),
                wants_hold: row.try_get_unchecked::<i64, _>("wants_hold").unwrap() != 0,
                reason: text(row, "reason"),
                hold_ends_in: expires_at.map(|end| (end - now).num_seconds() / 50 * 50),
                owes_release: row.try_get_unchecked::<i64, _>("owed").unwrap() != 0,
                announced: announced.map(|(a, b)| (a.to_owned(), b.to_owned())).collect(),
            };
            (id.parse().unwrap(), seen)
        };
        rows.iter().map(seen).collect()
    }
}
