//! What libtest says of a test program's tests: how many passed, how many failed, and which.

/// What test programs said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    /// Which failed.
    pub(crate) failures: Vec<String>,
}

impl Count {
    pub(crate) const fn one_passed() -> Self {
        Self { passed: 1, failed: 0, failures: Vec::new() }
    }

    /// Of what is said of the failure, its first line.
    pub(crate) fn one_failed(said: &str) -> Self {
        Self { passed: 0, failed: 1, failures: said.lines().take(1).map(str::to_owned).collect() }
    }

    /// The same, with a place before each failure's name.
    pub(crate) fn of(mut self, place: &str) -> Self {
        for failure in &mut self.failures {
            *failure = format!("{place}: {failure}");
        }
        self
    }
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.failures.extend(other.failures);
    }
}

/// Reads what test programs print, line by line.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    pub(crate) count: Count,
    /// How many programs came to their summary.
    pub(crate) summaries: u32,
    /// What may be the names after `failures:`.
    indented: Vec<String>,
}

impl Reader {
    pub(crate) fn line(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("    ") {
            self.indented.push(name.to_owned());
        } else if line == "failures:" {
            // The first is followed by what the tests printed, the second by their names.
            self.indented.clear();
        } else if let Some((passed, failed)) = summary(line) {
            self.summaries += 1;
            let named = std::mem::take(&mut self.indented);
            let failures = if failed == 0 { Vec::new() } else { named };
            self.count += Count { passed, failed, failures };
        }
    }
}

/// libtest's last line: `test result: ok. 12 passed; 0 failed; ...`
fn summary(line: &str) -> Option<(u32, u32)> {
    let mut words = line.strip_prefix("test result: ")?.split_whitespace();
    let mut number = |unit: &str| {
        let mut last = None;
        words.by_ref().find(|word| {
            let found = word.trim_end_matches(';') == unit;
            if !found {
                last = word.parse().ok();
            }
            found
        })?;
        last
    };
    Some((number("passed")?, number("failed")?))
}

#[cfg(test)]
mod tests {
    use super::{Count, Reader};

    #[test]
    fn libtest_s_summaries_are_read() {
        let mut reader = Reader::default();
        let lines = "test result_of_a_test ... ok\n\
            \nfailures:\n\
            \n---- parts::one stdout ----\n    said by it\n\
            \nfailures:\n    parts::one\n    src/lib.rs - parts (line 3)\n\
            \ntest result: FAILED. 12 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.98s\n\
            \n    said by a test that passes\n\
            test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.98s\n";
        lines.lines().for_each(|line| reader.line(line));
        let failures = ["lib: parts::one", "lib: src/lib.rs - parts (line 3)"].map(str::to_owned).to_vec();
        assert_eq!(reader.summaries, 2);
        assert_eq!(reader.count.of("lib"), Count { passed: 15, failed: 2, failures });
    }
}
