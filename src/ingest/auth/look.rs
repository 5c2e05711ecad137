//! Looks at the provider of JWTs for `stocklock doctor`.

use super::jwks::{Provider, shown};
use crate::{
    config::JwksConfig,
    error_text::with_causes,
    finding::{Check, Finding, Findings, Remedy},
};

/// Reads the keys of the provider as ingest does. Never fails: what cannot be read is a finding
/// too. Takes 5 s at most.
pub(crate) async fn look_at_provider(config: &JwksConfig) -> Vec<Finding> {
    let mut findings = Findings::of("jwks", shown(&config.url));
    let url = || Remedy::Setting("auth.jwks_url = \"https://HOST/PATH\"".into());
    let provider = match Provider::new(config) {
        Ok(provider) => provider,
        Err(error) => {
            let setting = Remedy::Setting("auth.jwks_ca_location = \"FILE\"".into());
            findings.wrong(Check::Configuration, with_causes(error.as_ref()), setting);
            return findings.into_vec();
        }
    };
    match provider.read().await {
        Ok(keys) => {
            let text = format!("answers, with {} keys that a JWT may be signed with", keys.len());
            findings.fine(Check::Reachable, text);
        }
        Err(error) if error.is::<reqwest::Error>() => {
            findings.unreachable(with_causes(error.as_ref()), url());
        }
        Err(error) => findings.wrong(Check::Reachable, with_causes(error.as_ref()), url()),
    }
    findings.into_vec()
}
