//! What a machine's console says: which test programs ran, what they counted, which rung each feature stands on.
//!
//! Takes lines, gives [`Group`]s. A test says `feature NAME: RUNG` for a row of the table of kernels; whatever it says of the same feature
//! last is what counts.

use crate::count::{Count, Reader};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What became of one test program.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) took: Duration,
    /// Everything it printed.
    pub(super) lines: Vec<String>,
    begun: Instant,
    tests: Reader,
    status: Option<i32>,
}

impl Group {
    /// What its tests counted; one more that failed if that is not the whole story.
    pub(super) fn count(&self) -> Count {
        let mut count = self.tests.count.clone();
        if let Some(why) = self.broken() {
            count += Count::one_failed(&why);
        }
        count.of(&self.name)
    }

    /// Why its counts are not the whole story, if they are not.
    pub(super) fn broken(&self) -> Option<String> {
        /// What `timeout -s KILL` gives: 128 and the signal's number.
        const KILLED: i32 = 137;
        match self.status {
            None => Some("the machine ended under it".to_owned()),
            Some(KILLED) => Some("killed, at its time limit or for want of memory".to_owned()),
            Some(status) if self.tests.summaries == 0 || (status != 0 && self.tests.count.failed == 0) => {
                Some(format!("ended with status {status}"))
            }
            Some(_) => None,
        }
    }

    /// Whether it, being no test program, ended with success.
    pub(super) fn exited_well(&self) -> bool {
        self.status == Some(0)
    }

    /// Whether every test of it passed.
    pub(super) fn passed(&self) -> bool {
        self.broken().is_none() && self.tests.count.failed == 0
    }
}

/// The console of one machine so far.
#[derive(Debug, Default)]
pub(super) struct Console {
    pub(super) groups: Vec<Group>,
    pub(super) features: BTreeMap<String, String>,
    running: bool,
}

impl Console {
    /// Takes a line; gives the group that it ended, if it ended one.
    pub(super) fn line(&mut self, text: &str, now: Instant) -> Option<&Group> {
        match text.strip_prefix("vm: ").and_then(|mark| mark.split_once(' ')) {
            Some(("up", _)) => *self = Self::default(),
            Some(("begin", name)) => {
                self.running = true;
                self.groups.push(Group {
                    name: name.to_owned(),
                    took: Duration::ZERO,
                    lines: Vec::new(),
                    begun: now,
                    tests: Reader::default(),
                    status: None,
                });
            }
            Some(("end", _)) if self.running => {
                self.running = false;
                return self.groups.last();
            }
            _ if self.running => self.of_program(text, now),
            _ => {}
        }
        None
    }

    fn of_program(&mut self, text: &str, now: Instant) {
        let Some(group) = self.groups.last_mut() else { return };
        group.took = now.saturating_duration_since(group.begun);
        if let Some(status) = text.strip_prefix("vm: status ") {
            group.status = status.parse().ok();
            return;
        }
        group.tests.line(text);
        if let Some((name, rung)) = text.strip_prefix("feature ").and_then(|feature| feature.split_once(": ")) {
            self.features.insert(name.to_owned(), rung.to_owned());
        }
        group.lines.push(text.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Console {
        let mut console = Console::default();
        for line in lines {
            console.line(line, Instant::now());
        }
        console
    }

    #[test]
    fn groups_and_features_are_read() {
        let console = read(&[
            "vm: up 6.12.1",
            "vm: begin kernel_programs",
            "test a_test ... ok",
            "feature tc: TCX",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.98s",
            "vm: status 0",
            "vm: end kernel_programs",
            "vm: begin traffic",
            "test b ... ",
        ]);
        let [programs, traffic] = &console.groups[..] else { panic!("{console:?}") };
        assert!(programs.passed() && programs.count().passed == 3, "{programs:?}");
        assert!(traffic.broken().is_some_and(|why| why.contains("machine")), "{traffic:?}");
        assert_eq!(console.features.get("tc").map(String::as_str), Some("TCX"));
    }

    #[test]
    fn a_program_without_a_summary_is_broken() {
        let killed = read(&["vm: begin lab", "vm: status 137", "vm: end lab"]);
        assert!(killed.groups[0].broken().is_some_and(|why| why.contains("time limit")));
        let silent = read(&["vm: begin lab", "vm: status 0", "vm: end lab"]);
        assert!(!silent.groups[0].passed());
    }

    #[test]
    fn a_second_boot_begins_anew() {
        assert!(read(&["vm: up 1", "vm: begin lab", "vm: up 1"]).groups.is_empty());
    }
}
