//! `stocklock doctor`: looks at each dependency as configured, and says what is wrong and which
//! line mends it. The rooms look; this command chooses what the roles need, and prints.

mod needs;
mod process;

use std::time::Duration;

use clap::Args;
use futures::future::LocalBoxFuture;
use serde_json::json;
use tokio::time::timeout;

use self::needs::{LookedRole, Needs};
use super::{Answer, Output, process::SchemaRegistry};
use crate::{
    config::Config,
    error_text::with_causes,
    finding::{Check, Finding, Findings, Remedy, Verdict},
    ingest::look_at_provider,
    kafka::KafkaLook,
    lock::look_at_masters,
    registry::look_at_registry,
    store::StoreLook,
};

/// The longest time for one dependency. All are looked at at the same time, and each look has
/// limits of its own that end before.
const MAX_TIME: Duration = Duration::from_secs(40);

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Look only at what this role needs; may be repeated
    #[arg(long = "role", value_enum, value_delimiter = ',')]
    roles: Vec<LookedRole>,
    /// Exit with status 1 for warnings too
    #[arg(long)]
    strict: bool,
    /// Print what is in order too
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(
    args: &DoctorArgs,
    config: &Config,
    output: Output,
) -> anyhow::Result<Answer> {
    let roles = if args.roles.is_empty() { &LookedRole::ALL[..] } else { &args.roles };
    let needs = Needs::new(config, roles);
    let findings = look(config, &needs).await;
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (unreachable, wrong, warnings) =
        (count(Verdict::Unreachable), count(Verdict::Wrong), count(Verdict::Warning));
    let answer = match (wrong, unreachable, warnings) {
        (1.., _, _) => Answer::No,
        (0, 1.., _) => Answer::Unknown,
        (0, 0, 1..) if args.strict => Answer::No,
        (0, 0, _) => Answer::Done,
    };
    if output == Output::Json {
        let findings: Vec<_> = findings.iter().map(Finding::to_json).collect();
        println!(
            "{}",
            json!({
                "healthy": answer == Answer::Done, "unreachable": unreachable, "wrong": wrong,
                "warnings": warnings, "findings": findings,
            })
        );
        return Ok(answer);
    }
    for finding in &findings {
        if args.all || finding.verdict != Verdict::Fine {
            show(finding);
        }
    }
    let fine = count(Verdict::Fine);
    println!("{fine} ok, {warnings} warnings, {wrong} wrong, {unreachable} unreachable");
    Ok(answer)
}

fn show(finding: &Finding) {
    let Finding { dependency, subject, check, verdict, text, remedy } = finding;
    let check = check.as_str();
    println!("{:11} {dependency} {subject}: {check}: {text}", verdict.as_str());
    if let Some(remedy) = remedy {
        println!("            mend: {}", remedy.line());
    }
}

/// Looks at the dependencies of the roles at the same time. Sorted by dependency, in the order of
/// an order's way.
async fn look(config: &Config, needs: &Needs<'_>) -> Vec<Finding> {
    let stores = needs.stores();
    let topics = needs.topics();
    let registry = SchemaRegistry::open(config);
    let kafka = KafkaLook {
        kafka: &config.kafka,
        topics: &config.topics,
        horizon: config.retention.horizon,
        needs: topics,
        groups: needs.consumed(),
    };
    // Declared after what the looks borrow.
    let mut looks: Vec<LocalBoxFuture<'_, Vec<Finding>>> = Vec::new();
    for store in &stores {
        looks.push(Box::pin(store.findings()));
    }
    let look = async |found: &mut Vec<Finding>| kafka.look(found).await;
    looks.push(Box::pin(bounded("kafka", MAX_TIME, look)));
    if needs.redis() {
        looks.push(Box::pin(look_at_masters(&config.lock, &config.redis)));
    }
    let url = config.schema_registry.as_ref().map_or("", |settings| &settings.url);
    match &registry {
        Ok(Some(SchemaRegistry { client, schemas })) => {
            let subjects = schemas.subjects().iter().map(|subject| &**subject);
            looks.push(Box::pin(look_at_registry(url, client, subjects)));
        }
        Ok(None) => {}
        Err(error) => looks.push(Box::pin(std::future::ready(unusable_registry(url, error)))),
    }
    if let Some(jwks) = config.auth.jwks.as_ref().filter(|_| needs.http()) {
        looks.push(Box::pin(look_at_provider(jwks)));
    }
    let mut findings = process::look(config, needs);
    let mut insecure = process::look_for_insecure(config, needs);
    for looked in futures::future::join_all(looks).await {
        let dependency = looked.first().map(|finding| finding.dependency);
        let of_same = |finding: &mut Finding| Some(finding.dependency) == dependency;
        findings.extend(insecure.extract_if(.., of_same));
        findings.extend(looked);
    }
    findings
}

/// A registry for which no client can be made.
fn unusable_registry(url: &str, error: &anyhow::Error) -> Vec<Finding> {
    let mut findings = Findings::of("schema_registry", url);
    let remedy = Remedy::Setting("schema_registry.url = \"http://HOST:PORT/PATH\"".into());
    findings.wrong(Check::Configuration, with_causes(error.as_ref()), remedy);
    findings.into_vec()
}

/// Looks at the stores for `setup`, which has migrated them: what it warns of beside the topics.
pub(super) async fn look_at_stores(config: &Config) -> Vec<Finding> {
    let needs = Needs::new(config, &[LookedRole::Setup]);
    let stores = needs.stores();
    let looks = stores.iter().map(StoreLook::findings);
    futures::future::join_all(looks).await.into_iter().flatten().collect()
}

/// Ends a look that takes too long, and keeps what it has found until then.
async fn bounded(
    dependency: &'static str,
    limit: Duration,
    look: impl AsyncFnOnce(&mut Vec<Finding>),
) -> Vec<Finding> {
    let mut found = Vec::new();
    if timeout(limit, look(&mut found)).await.is_err() {
        let mut findings = Findings::of(dependency, "");
        let text = format!("not looked at in full within {} s", limit.as_secs());
        findings.unreachable(text, Remedy::Advice("check its load, and the network".into()));
        found.extend(findings.into_vec());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_without_a_client_hides_no_other_dependency() {
        let error = anyhow::anyhow!("no authorities").context("schema_registry.url");

        let found = unusable_registry("https://r", &error);

        let found: Vec<_> = found.iter().map(|one| (one.verdict, one.text.as_str())).collect();
        assert_eq!(found, [(Verdict::Wrong, "schema_registry.url: no authorities")]);
    }

    #[tokio::test]
    async fn a_look_that_is_ended_keeps_what_it_has_found() {
        let look = async |found: &mut Vec<Finding>| {
            let mut findings = Findings::of("kafka", "topic orders");
            findings.fine(Check::TopicExists, "exists");
            found.extend(findings.into_vec());
            std::future::pending::<()>().await;
        };

        let found = bounded("kafka", Duration::from_millis(1), look).await;

        let checks: Vec<_> = found.iter().map(|finding| finding.check).collect();
        assert_eq!(checks, [Check::TopicExists, Check::Reachable]);
        assert_eq!(found[1].verdict, Verdict::Unreachable);
    }
}
