//! The time of a run, and what the machine did with it.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    time::Instant,
};

use nix::unistd::{SysconfVar, sysconf};

/// A program that used less of the time, per mille, is not told of.
const TOLD_FROM_PER_MILLE: f64 = 5.0;

/// Counts from its making.
pub(super) struct Stopwatch {
    begun: Instant,
    before: HashMap<u32, Process>,
}

struct Process {
    program: String,
    cpu_seconds: f64,
}

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self { before: processes(), begun: Instant::now() }
    }

    /// The seconds since then, and the CPU seconds of each program on this machine in them, by its
    /// name. Processes of this program are counted but for this one, which is `bench`.
    pub(super) fn stop(&self) -> (f64, BTreeMap<String, f64>) {
        let seconds = self.begun.elapsed().as_secs_f64();
        let now = processes();
        let this = std::process::id();
        let own_name = now.get(&this).map_or("", |process| &process.program);
        let mut used: BTreeMap<String, f64> = BTreeMap::new();
        for (id, process) in &now {
            let before = self.before.get(id).map_or(0.0, |before| before.cpu_seconds);
            let program = match (*id == this, process.program == own_name) {
                (true, _) => "bench",
                (false, true) => continue,
                (false, false) => &process.program,
            };
            *used.entry(program.to_owned()).or_default() += process.cpu_seconds - before;
        }
        used.retain(|_, cpu_seconds| *cpu_seconds * 1000.0 >= seconds * TOLD_FROM_PER_MILLE);
        (seconds, used)
    }
}

/// The CPU seconds that a process has used so far, by `/proc`.
pub(super) fn cpu_seconds(process: u32) -> Option<f64> {
    parse(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
        .map(|process| process.cpu_seconds)
}

fn processes() -> HashMap<u32, Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter_map(|id| Some((id, parse(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)?)))
        .collect()
}

/// The name stands in parentheses, and may have some itself; the 14th and 15th fields are ticks in
/// user and system mode.
fn parse(stat: &str) -> Option<Process> {
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, program) = head.split_once('(')?;
    let mut ticks =
        tail.split_whitespace().skip(11).map(|field| field.parse::<u32>().map(f64::from));
    let ticks = ticks.next()?.ok()? + ticks.next()?.ok()?;
    let per_second = sysconf(SysconfVar::CLK_TCK).ok()??;
    let per_second = f64::from(u32::try_from(per_second).ok()?);
    Some(Process { program: program.to_owned(), cpu_seconds: ticks / per_second })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let stat = "42 (a (b) c) S 1 42 42 0 -1 4194304 1 2 3 4 150 50 0 0 20 0 9 0 100 1 1";
        let process = parse(stat).unwrap();
        assert_eq!(process.program, "a (b) c");
        let own = cpu_seconds(std::process::id()).unwrap();
        assert!(process.cpu_seconds > 0.0 && own >= 0.0);
    }
}
