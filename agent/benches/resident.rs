//! What one more read costs a reader that stays: the time, calls and bytes of a warm `memory::read`.
//!
//! Not a comparison by itself: `tests/measure` starts a worker, runs this beside `py-spy dump`, and prints both.
//! `resident [--rounds N] [--modules] PID...` answers with one line of JSON; a round reads every process once.

use std::fs;
use std::time::Instant;
use unstale_agent::memory::{Cache, read};
use unstale_agent::reading::{Outcome, ReadOptions, Reading};
use unstale_protocol::ids::{Pid, ProcessIdentity};

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn now() -> Instant {
    Instant::now()
}

/// Reads who a process is: its number, start time (field 22 of `/proc/PID/stat`, proc(5)) and pid namespace; and its
/// parent (field 4).
fn identity(pid: u32) -> Option<(ProcessIdentity, u32)> {
    use std::os::unix::fs::MetadataExt as _;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let (parent, start_ticks) = (fields.get(1)?.parse().ok()?, fields.get(19)?.parse().ok()?);
    let namespace = fs::metadata(format!("/proc/{pid}/ns/pid")).ok()?.ino();
    Some((ProcessIdentity { pid: Pid(pid), start_ticks, pid_namespace: namespace }, parent))
}

/// Returns the median and the least.
fn middle(times: &mut [f64]) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times.get(times.len() / 2).copied().unwrap_or_default(), times.first().copied().unwrap_or_default())
}

#[expect(clippy::print_stdout, reason = "its answer")]
fn main() -> Result<(), String> {
    let mut rounds = 100_usize;
    let mut list_modules = false;
    let mut processes = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // What `cargo bench` adds.
            "--bench" => {}
            // Also every first-party module without an enum, as a pre-flight and `--root` want it.
            "--modules" => list_modules = true,
            "--rounds" => {
                rounds = arguments.next().and_then(|text| text.parse().ok()).filter(|n| *n > 0).ok_or("--rounds N")?;
            }
            pid => {
                let pid = pid.parse().map_err(|_| format!("not a process number: {pid}"))?;
                processes.push(identity(pid).ok_or_else(|| format!("no process {pid}"))?);
            }
        }
    }
    if processes.is_empty() {
        // `cargo bench` without a target: there is nothing to measure.
        println!("resident [--rounds N] [--modules] PID...: name the processes to read, or run tests/measure");
        return Ok(());
    }
    // As the agent reads: forked children without un-sharing their pages.
    let options = |parent: u32| {
        let through_mem = processes.iter().any(|(other, _)| other.pid.0 == parent);
        ReadOptions { list_modules, through_mem, ..ReadOptions::default() }
    };
    let mut cache = Cache::with_mate().map_err(|error| error.to_string())?;
    // With `compared`, also what has not run since is compared, as everything is that has.
    let mut round = |compared: bool| -> Result<(f64, Vec<Reading>), String> {
        if compared {
            cache.doubt();
        }
        let begun = now();
        let readings: Vec<Reading> =
            processes.iter().map(|(identity, parent)| read(*identity, &options(*parent), &mut cache)).collect();
        let taken = begun.elapsed().as_secs_f64() * 1000.0;
        match readings.iter().find(|reading| reading.outcome != Outcome::Complete) {
            Some(reading) => Err(format!("pid {}: {:?}", reading.identity.pid, reading.outcome)),
            None => Ok((taken, readings)),
        }
    };
    let (cold, _) = round(true)?;
    let mut times = Vec::with_capacity(rounds);
    let mut last = Vec::new();
    let mut rested = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let (taken, readings) = round(true)?;
        times.push(taken);
        last = readings;
        rested.push(round(false)?.0);
    }
    let (median, quickest) = middle(&mut times);
    let (rested, _) = middle(&mut rested);
    let calls: u64 = last.iter().map(|reading| u64::from(reading.cost.calls)).sum();
    let bytes: u64 = last.iter().map(|reading| reading.cost.bytes).sum();
    let enums: usize = last.iter().map(|reading| reading.enums.len()).sum();
    println!(
        "{}",
        serde_json::json!({
            "processes": processes.len(), "rounds": rounds, "first_ms": cold, "median_ms": median, "min_ms": quickest,
            "rested_ms": rested,
            "calls": calls, "bytes": bytes, "enums": enums,
        })
    );
    Ok(())
}
