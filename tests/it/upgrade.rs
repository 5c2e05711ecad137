//! `stocklock setup` on stores that an earlier version has made.

use crate::harness::{World, on_each_database};

on_each_database!(a_store_whose_enumeration_has_a_character_set_gets_holds,);

/// An earlier `setup` gave the enumerations a character set of their own.
async fn a_store_whose_enumeration_has_a_character_set_gets_holds(world: World) {
    let earlier = "DROP TABLE holds, announcements;
        ALTER TABLE orders DROP COLUMN hold_seconds, DROP COLUMN is_hold_confirmed,
            MODIFY status ENUM ('PENDING', 'COMPLETED', 'FAILED', 'CANCELLED')
                CHARACTER SET ascii COLLATE ascii_general_ci NOT NULL DEFAULT 'PENDING';
        DELETE FROM _sqlx_migrations WHERE version = 5";
    world.tamper_with_orders(earlier).await;

    world.cli(&["setup"]).succeeds();

    let reserved = r#"INSERT INTO orders
            (order_id, status, hold_seconds, `lines`, created_at, updated_at)
        VALUES (X'01A21BAE2FEA75FA918EBEEDCD32D1A3', 'RESERVED', 60, '[["a",1]]', NOW(3), NOW(3))"#;
    world.tamper_with_orders(reserved).await;
    assert_eq!(world.count_orders("RESERVED").await, 1);
}
