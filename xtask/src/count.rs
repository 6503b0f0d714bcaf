//! What libtest says of a test program's tests: how many passed and failed.

/// What test programs said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// libtest's last line: `test result: ok. 12 passed; 0 failed; ...`
pub(crate) fn summary(line: &str) -> Option<Count> {
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
    Some(Count { passed: number("passed")?, failed: number("failed")? })
}

#[cfg(test)]
mod tests {
    use super::{Count, summary};

    #[test]
    fn libtest_s_summary_is_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.98s";
        assert_eq!(summary(line), Some(Count { passed: 12, failed: 3 }));
        assert_eq!(summary("test result_of_a_test ... ok"), None);
    }
}
