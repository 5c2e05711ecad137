use super::{check_page, code, table};
use crate::telemetry::DEAD_LETTER_CLASSES;

#[test]
fn the_page_of_dead_letters_is_the_list_of_classes() {
    let rows = DEAD_LETTER_CLASSES
        .iter()
        .map(|class| [code(class.name), class.cause.to_owned(), class.remedy.to_owned()]);
    let mut body = table(["class", "cause", "remedy"], rows);
    body += "\n[dead-letters.md](../dead-letters.md) says which classes stop a lane, and what a \
             letter has\nof its message.\n";

    check_page(
        "dead-letters.md",
        "Classes of dead letters",
        "src/telemetry/dead_letter_classes.rs",
        &body,
    );
}
