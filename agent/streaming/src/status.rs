//! The `Status` object that ends a session on channel 3. Pure.

use serde_json::{Value, json};

/// How a remote command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecOutcome {
    /// The process exited with this code.
    Exited(i32),
    /// The stream ended without an exit code (attach detached, log ended).
    Success,
    /// The command could not be run or its result is unknown.
    Failed { message: String },
}

impl ExecOutcome {
    /// The `Status` that clients turn into an exit code.
    #[must_use]
    pub fn to_status(&self) -> Value {
        match self {
            Self::Success | Self::Exited(0) => json!({"metadata": {}, "status": "Success"}),
            Self::Exited(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("command terminated with non-zero exit code: exit status {code}"),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failed { message } => json!({
                "metadata": {},
                "status": "Failure",
                "message": message,
                "reason": "InternalError",
                "details": {"causes": [{"message": message}]},
                "code": 500,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_travels_as_a_cause() {
        let status = ExecOutcome::Exited(3).to_status();
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(
            status["details"]["causes"][0],
            json!({"reason": "ExitCode", "message": "3"})
        );
        assert_eq!(ExecOutcome::Exited(0).to_status()["status"], "Success");
    }
}
