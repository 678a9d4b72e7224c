//! How much memory `waybill up` and its Postgres need at most. On Linux; elsewhere nothing
//! is found and 0 is reported.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// Summing Postgres up takes milliseconds, and what peaks for less than this is no matter.
const INTERVAL: Duration = Duration::from_millis(500);

/// Watches a process and its children until it is dropped.
pub(crate) struct Memory {
    pid: u32,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    postgres_kib: AtomicU64,
    is_over: AtomicBool,
}

/// The most memory that was seen, in KiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peak {
    /// Resident in the process itself, as the kernel recorded it (VmHWM).
    pub(crate) process_kib: u64,
    /// Of all its Postgres processes together, what they share counted once (PSS).
    pub(crate) postgres_kib: u64,
}

impl Memory {
    /// Begins to watch.
    pub(crate) fn watch(pid: u32) -> Self {
        let shared = Arc::new(Shared::default());
        let seen = Arc::clone(&shared);
        thread::spawn(move || {
            while !seen.is_over.load(Ordering::Relaxed) {
                seen.postgres_kib.fetch_max(postgres_kib(pid), Ordering::Relaxed);
                thread::sleep(INTERVAL);
            }
        });
        Self { pid, shared }
    }

    /// Returns the peak so far.
    pub(crate) fn peak(&self) -> Peak {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        Peak {
            process_kib: field_kib(&status, "VmHWM:"),
            postgres_kib: self.shared.postgres_kib.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
    }
}

/// Adds up the Postgres processes below `pid`.
fn postgres_kib(pid: u32) -> u64 {
    let Ok(entries) = fs::read_dir("/proc") else {
        return 0;
    };
    let mut processes = HashMap::new();
    for entry in entries.flatten() {
        if let Ok(child) = entry.file_name().to_string_lossy().parse::<u32>()
            && let Ok(stat) = fs::read_to_string(entry.path().join("stat"))
            && let Some((name, parent)) = name_and_parent(&stat)
        {
            processes.insert(child, (name, parent));
        }
    }
    processes
        .iter()
        .filter(|(child, (name, _))| name == "postgres" && is_below(&processes, **child, pid))
        .map(|(child, _)| {
            let rollup = fs::read_to_string(format!("/proc/{child}/smaps_rollup"));
            field_kib(&rollup.unwrap_or_default(), "Pss:")
        })
        .sum()
}

fn is_below(processes: &HashMap<u32, (String, u32)>, child: u32, ancestor: u32) -> bool {
    let mut at = child;
    while let Some((_, parent)) = processes.get(&at) {
        if *parent == ancestor {
            return true;
        }
        at = *parent;
    }
    false
}

/// Reads `pid (name) state parent ...`; the name may hold anything.
fn name_and_parent(stat: &str) -> Option<(String, u32)> {
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1;
    Some((name.to_owned(), after.split_whitespace().nth(1)?.parse().ok()?))
}

/// Returns the number of a line such as `VmHWM:   1234 kB`; 0 if there is none.
fn field_kib(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_read() {
        assert_eq!(name_and_parent("12 (a (b) c) S 7 12 12"), Some(("a (b) c".to_owned(), 7)));
        assert_eq!(field_kib("VmPeak:\t 9 kB\nVmHWM:\t 12 kB\n", "VmHWM:"), 12);
        assert_eq!(field_kib("", "VmHWM:"), 0);
    }

    #[test]
    fn descent_goes_over_generations() {
        let process = |parent| ("x".to_owned(), parent);
        let processes = HashMap::from([(2, process(1)), (3, process(2)), (4, process(9))]);
        assert!(is_below(&processes, 3, 1));
        assert!(!is_below(&processes, 4, 1));
    }
}
