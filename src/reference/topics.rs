use super::{check_page, code, table};
use crate::{config::KEYS, kafka::TOPICS};

#[test]
fn the_page_of_topics_is_the_list_of_topics() {
    let default = |setting| KEYS.iter().find(|key| key.name == setting).unwrap().default;
    let rows = TOPICS.map(|topic| {
        [
            code(default(topic.setting)),
            code(topic.setting),
            topic.key.to_owned(),
            topic.value.to_owned(),
            topic.producers.to_owned(),
            topic.consumers.to_owned(),
        ]
    });
    let head = ["topic", "setting of its name", "key", "value", "producers", "consumers"];
    let body =
        table(head, rows) + "\n[topics.md](../topics.md) says what other systems may write.\n";

    check_page("topics.md", "Topics", "src/kafka/topics.rs", &body);
}
