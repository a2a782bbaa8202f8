//! Counts of tests in what libtest prints. Pure.

/// Tests by outcome.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
    pub(crate) failures: Vec<String>,
}

impl Count {
    /// Takes a line of the output into account.
    pub(crate) fn line(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("test result: ") {
            self.passed += number_before(rest, " passed");
            self.failed += number_before(rest, " failed");
            self.ignored += number_before(rest, " ignored");
        } else if let Some(rest) = line.strip_prefix("test ")
            && let Some((name, outcome)) = rest.rsplit_once(" ... ")
            && outcome.starts_with("FAILED")
        {
            self.failures.push(name.to_owned());
        }
    }
}

fn number_before(text: &str, word: &str) -> u64 {
    let Some(end) = text.find(word) else { return 0 };
    let digits = text[..end]
        .rsplit(|character: char| !character.is_ascii_digit())
        .next();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// Lines that say only that all is well.
pub(crate) fn is_noise(line: &str) -> bool {
    line.is_empty()
        || line == "running 0 tests"
        || line
            .starts_with("test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_programs_are_added() {
        let mut count = Count::default();
        count.line("test result: ok. 10 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out");
        count.line("test a::b ... FAILED");
        count
            .line("test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 2 filtered out");
        assert_eq!((count.passed, count.failed, count.ignored), (13, 1, 1));
        assert_eq!(count.failures, ["a::b"]);
    }

    #[test]
    fn what_a_test_prints_about_itself_is_not_counted() {
        let mut count = Count::default();
        count.line("a line that says 5 passed");
        count.line("test a ... ok");
        assert_eq!(count, Count::default());
    }
}
