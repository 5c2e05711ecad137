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
    finding::{Check, Finding, Findings, Remedy, Verdict},
    kafka::KafkaLook,
    lock::look_at_masters,
    registry::look_at_registry,
};

/// The longest time for one dependency. All are looked at at the same time.
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
    let findings = look(config, &needs).await?;
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
async fn look(config: &Config, needs: &Needs<'_>) -> anyhow::Result<Vec<Finding>> {
    let stores = needs.stores();
    let topics = needs.topics();
    let registry = SchemaRegistry::open(config)?;
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
        let name = store.store.as_str();
        looks.push(Box::pin(bounded(name, store.findings())));
    }
    looks.push(Box::pin(bounded("kafka", kafka.findings())));
    if needs.redis() {
        looks.push(Box::pin(bounded("redis", look_at_masters(&config.lock, &config.redis))));
    }
    if let (Some(SchemaRegistry { client, schemas }), Some(settings)) =
        (&registry, &config.schema_registry)
    {
        let subjects = schemas.subjects().iter().map(|subject| &**subject);
        let look = look_at_registry(&settings.url, client, subjects);
        looks.push(Box::pin(bounded("schema_registry", look)));
    }
    let mut findings = process::look(config, needs);
    let mut insecure = process::look_for_insecure(config, needs);
    for looked in futures::future::join_all(looks).await {
        let dependency = looked.first().map(|finding| finding.dependency);
        let of_same = |finding: &mut Finding| Some(finding.dependency) == dependency;
        findings.extend(insecure.extract_if(.., of_same));
        findings.extend(looked);
    }
    Ok(findings)
}

/// Looks at the stores for `setup`, which has migrated them: what it warns of beside the topics.
pub(super) async fn look_at_stores(config: &Config) -> Vec<Finding> {
    let needs = Needs::new(config, &[LookedRole::Setup]);
    let stores = needs.stores();
    let looks = stores.iter().map(|store| bounded(store.store.as_str(), store.findings()));
    futures::future::join_all(looks).await.into_iter().flatten().collect()
}

async fn bounded(
    dependency: &'static str,
    look: impl Future<Output = Vec<Finding>>,
) -> Vec<Finding> {
    timeout(MAX_TIME, look).await.unwrap_or_else(|_| {
        let mut findings = Findings::of(dependency, "");
        let text = format!("not looked at in full within {} s", MAX_TIME.as_secs());
        findings.unreachable(text, Remedy::Advice("check its load, and the network".into()));
        findings.into_vec()
    })
}
