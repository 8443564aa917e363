//! `unstale broadcast`: the deploy hook. Builds the manifest, checks it, announces it, waits for proof.

mod dry_run;

use super::follow::{self, Wait};
use super::parts;
use crate::api::{BroadcastAccepted, BroadcastRequest, Finding, Outcome, Rollout, RolloutUnits, Severity, Standing};
use crate::cli::{AppTarget, BroadcastArgs, LogArgs, Output, Surroundings};
use crate::client::Client;
use crate::clock::Clock;
use crate::manifest::{self, Built};
use crate::report::{self, Exit};
use crate::{database, render};
use unstale_protocol::ids::Revision;
use unstale_protocol::time::Moment;

pub(super) async fn run(args: BroadcastArgs, log: LogArgs, surroundings: Surroundings) -> anyhow::Result<Exit> {
    let clock = Clock::start();
    let built = manifest::build(&args.paths, parts::parser()).await?;
    let mut findings = built.findings.clone();
    if let Some(url) = &args.database {
        let labels = database::read_labels(url).await?;
        findings.extend(database::check_before_broadcast(&built.bindings, &built.definitions, &labels));
    }
    if args.output.output == Output::Text && !findings.is_empty() {
        report::note(render::broadcast::findings(&findings).trim_end());
    }
    let is_refused = findings.iter().any(|finding| finding.severity == Severity::Error) && !args.force;
    if is_refused {
        return Ok(refused(&args, &built, findings, clock));
    }
    let client = Client::find(&args.coordinator, &surroundings).await?;
    let request = request(&args, &built);
    if args.dry_run {
        if args.output.output == Output::Text && !log.quiet {
            let count = |number: usize, noun| render::count(u32::try_from(number).unwrap_or(u32::MAX), noun);
            let definitions = count(built.manifest.entries.len(), "definition");
            report::note(&format!("dry run: {definitions} of {} would be announced", count(built.files, "file")));
        }
        let limit = args.timeout.limit();
        let asked = dry_run::run(&client, &request, limit, log).await?;
        let rollout = Rollout {
            fingerprint: built.manifest.fingerprint().to_string(),
            findings,
            elapsed_ms: since(clock),
            ..asked
        };
        print(&rollout, args.output.output);
        return Ok(follow::exit(rollout.outcome));
    }
    let accepted: BroadcastAccepted = client.post("/v1/broadcasts", &request).await?;
    for note in &accepted.notes {
        report::note(&format!("{}: {}", render::style::doubtful("warning"), render::plain(note)));
    }
    let target = AppTarget { app: args.app.clone(), revision: Some(accepted.baseline.revision) };
    tell_standing(&accepted, &target, log);
    let mut rollout = if args.detach {
        let mut rollout = accepted.baseline.clone();
        rollout.count_from(&accepted.baseline, since(clock));
        Rollout { outcome: Outcome::Detached, ..rollout }
    } else {
        let limit = args.timeout.limit();
        Wait { client: &client, target: &target, accepted: Some(&accepted), limit, log, clock }.run().await?
    };
    rollout.findings = findings;
    print(&rollout, args.output.output);
    // To leave at once is what was asked for, not an interruption.
    Ok(if args.detach { Exit::Clean } else { follow::exit(rollout.outcome) })
}

fn since(clock: Clock) -> u64 {
    u64::try_from(clock.now().since(Moment::default()).as_millis()).unwrap_or(u64::MAX)
}

fn tell_standing(accepted: &BroadcastAccepted, target: &AppTarget, log: LogArgs) {
    let line = match accepted.standing {
        Standing::New => format!("announced {target}"),
        Standing::Attached => format!("{target} was announced before: looking again, what is fresh is left alone"),
        Standing::Halted => format!("{target} is halted: `unstale resume {target}` goes on"),
    };
    if !log.quiet {
        report::note(&line);
    }
}

fn request(args: &BroadcastArgs, built: &Built) -> BroadcastRequest {
    BroadcastRequest {
        app: args.app.clone(),
        manifest: built.manifest.clone(),
        canary: args.canary,
        max_unavailable: args.max_unavailable,
        allow_empty: args.allow_empty,
        ignore_silent: args.ignore_silent,
        strict: args.strict,
        expect_hosts: args.expect_hosts,
        message: args.message.clone(),
        meta: args.meta.iter().map(|note| (note.key.clone(), note.value.clone())).collect(),
    }
}

/// Answers where the check refused the broadcast: nothing was announced.
fn refused(args: &BroadcastArgs, built: &Built, findings: Vec<Finding>, clock: Clock) -> Exit {
    let rollout = Rollout {
        schema: "unstale.broadcast/1".to_owned(),
        app: args.app.clone(),
        revision: Revision(0),
        fingerprint: built.manifest.fingerprint().to_string(),
        outcome: Outcome::Refused,
        because: Some("the check before it found errors".to_owned()),
        hosts: 0,
        silent: Vec::new(),
        sources: std::collections::BTreeMap::new(),
        units: RolloutUnits::default(),
        untracked: 0,
        bystanders: 0,
        purged_files: 0,
        elapsed_ms: since(clock),
        units_detail: Vec::new(),
        findings,
        dry_run: args.dry_run,
        would_purge: Vec::new(),
        omitted: 0,
    };
    match args.output.output {
        Output::Json => report::answer_json(&rollout),
        Output::Text => report::answer(&render::broadcast::refused(&rollout)),
    }
    Exit::Stale
}

fn print(rollout: &Rollout, form: Output) {
    match form {
        Output::Json => report::answer_json(rollout),
        Output::Text => report::answer(&render::broadcast::text(rollout)),
    }
}
