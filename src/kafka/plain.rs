//! Clients without callbacks of their own, for questions to brokers and for one message.

use std::{error::Error, time::Duration};

use rdkafka::{
    ClientConfig, ClientContext,
    admin::AdminClient,
    client::OAuthToken,
    config::{FromClientConfigAndContext as _, RDKafkaLogLevel},
    consumer::{BaseConsumer, ConsumerContext},
    error::{KafkaError, KafkaResult},
};

use super::{client::ClientLog, token::Tokens};

/// How long a client that asks serves its callbacks before a question.
const SERVE_FOR: Duration = Duration::from_millis(2);

/// A client that creates, describes and deletes topics.
pub(super) type Admin = AdminClient<PlainCallbacks>;

/// Writes the log of a client, and gives it its tokens.
#[derive(Default)]
pub(super) struct PlainCallbacks {
    /// `None`: another client of the process logs the same.
    log: Option<ClientLog>,
    tokens: Tokens,
}

impl PlainCallbacks {
    pub(super) fn new(tokens: &Tokens) -> Self {
        Self { log: Some(ClientLog::default()), tokens: tokens.clone() }
    }

    /// The same without a log.
    pub(super) fn quiet(tokens: &Tokens) -> Self {
        Self { log: None, tokens: tokens.clone() }
    }
}

impl ClientContext for PlainCallbacks {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        if let Some(log) = &self.log {
            log.line(level, facility, line);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if let Some(log) = &self.log {
            log.error(&error, reason);
        }
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.tokens.for_callback()
    }
}

impl ConsumerContext for PlainCallbacks {}

/// A client that asks brokers and consumes nothing. Blocks while the process has no token yet.
///
/// Fails if librdkafka rejects the configuration.
pub(super) fn asking(
    config: &ClientConfig,
    callbacks: PlainCallbacks,
) -> KafkaResult<BaseConsumer<PlainCallbacks>> {
    let client = BaseConsumer::from_config_and_context(config, callbacks)?;
    serve_callbacks(&client);
    Ok(client)
}

/// Serves the callbacks of a client that consumes nothing. Without them it gets no token, and logs
/// nothing.
pub(super) fn serve_callbacks<C: ConsumerContext>(client: &BaseConsumer<C>) {
    while client.poll(SERVE_FOR).is_some() {}
}

/// A client for topics. Its callbacks are never served, so it logs nothing, and is given its only
/// token here: it is for a few questions at once.
///
/// Fails if librdkafka rejects the configuration, or if there is no token within 5 s.
pub(super) async fn admin(config: &ClientConfig, tokens: &Tokens) -> KafkaResult<Admin> {
    let (config, tokens) = (config.clone(), tokens.clone());
    let made = tokio::task::spawn_blocking(move || {
        let client = Admin::from_config_and_context(&config, PlainCallbacks::default())?;
        let token = tokens.for_client().map_err(no_token)?;
        if let Some(token) = token {
            kafka_token::set_token(client.inner(), &token).map_err(no_token)?;
        }
        Ok(client)
    });
    made.await.unwrap_or(Err(KafkaError::Canceled))
}

fn no_token(why: String) -> KafkaError {
    KafkaError::ClientCreation(format!("no token: {why}"))
}
