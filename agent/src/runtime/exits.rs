//! Following running containers to their end: one `Wait` each, then the exit is journalled, the task
//! deleted and the log completed, in this order, before anybody is told.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use containerd_client::services::v1::{DeleteTaskRequest, GetRequest, WaitRequest};
use containerd_client::types::v1::{Process, Status};
use prost_types::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::connect::{CallError, Idempotent, QUICK, SLOW, call};
use super::containerd::{Driver, blocking};
use super::fanout::Fanout;
use super::io::Fifos;
use super::journal::Exit;
use super::logs;
use super::pidfd::PidFd;
use super::stdin::Stdin;

/// Exit code of a container that ended while nobody could see it, as containerd's CRI plugin has it.
pub(super) const UNKNOWN_EXIT_CODE: u32 = 255;

/// A disk that does not take the log must not hold up the exit for ever.
const LOG_DRAIN: Duration = Duration::from_secs(5);

/// What this process holds for one container whose task exists.
#[derive(Debug)]
pub(super) struct Tracked {
    is_waited_for: AtomicBool,
    log: Mutex<Option<JoinHandle<()>>>,
    log_ended: CancellationToken,
    pub(super) output: Arc<Fanout>,
    pub(super) stdin: Option<Stdin>,
    /// The last exit event seen, for a task that is gone before it could be asked.
    seen: Mutex<Option<(u32, SystemTime)>>,
    /// The container's first process, for an exit that containerd forgot.
    process: OnceLock<PidFd>,
    settled: watch::Sender<bool>,
}

/// What is needed to follow a container, read from its labels.
#[derive(Clone, Debug)]
pub(super) struct Follow {
    pub(super) id: String,
    pub(super) pod_uid: String,
    pub(super) log_path: std::path::PathBuf,
    pub(super) stdin: bool,
    pub(super) stdin_once: bool,
    pub(super) tty: bool,
    pub(super) cgroup_path: String,
}

/// All tracked containers by id.
pub(super) type Registry = Mutex<HashMap<String, Arc<Tracked>>>;

impl Tracked {
    /// Keeps hold of the first process, known to be alive now.
    pub(super) fn hold(&self, pid: u32) {
        if self.process.get().is_none() {
            match PidFd::open(pid) {
                Ok(process) => drop(self.process.set(process)),
                Err(error) => debug!(pid, %error, "cannot hold a container's process"),
            }
        }
    }

    /// Resolves once the exit is on disk and the log complete.
    pub(super) async fn settled(&self) {
        let mut settled = self.settled.subscribe();
        // An error means that the sender is gone, which it never is while `self` is borrowed.
        settled.wait_for(|settled| *settled).await.ok();
    }
}

impl Driver {
    pub(super) fn tracked(&self, id: &str) -> Option<Arc<Tracked>> {
        self.registry
            .lock()
            .expect("never poisoned")
            .get(id)
            .cloned()
    }

    /// Connects to the container's FIFOs and starts its log, unless that is done.
    pub(super) fn track(&self, follow: &Follow) -> std::io::Result<Arc<Tracked>> {
        let mut registry = self.registry.lock().expect("never poisoned");
        if let Some(tracked) = registry.get(&follow.id) {
            return Ok(tracked.clone());
        }
        let fifos = self.fifos(follow);
        fifos.create()?;
        let ends = fifos.open()?;
        let log_ended = CancellationToken::new();
        let output = Arc::new(Fanout::default());
        let log = tokio::spawn(logs::pump(
            ends.stdout,
            ends.stderr,
            logs::Sinks {
                path: follow.log_path.clone(),
                limits: self.config.log_limits,
                output: output.clone(),
            },
            self.cancel.clone(),
            log_ended.clone(),
        ));
        let tracked = Arc::new(Tracked {
            is_waited_for: AtomicBool::new(false),
            log: Mutex::new(Some(log)),
            log_ended,
            output,
            stdin: ends.stdin.map(Stdin::new),
            seen: Mutex::new(None),
            process: OnceLock::new(),
            settled: watch::Sender::new(false),
        });
        registry.insert(follow.id.clone(), tracked.clone());
        Ok(tracked)
    }

    /// Stops following a container whose task never ran.
    pub(super) fn untrack(&self, id: &str) {
        let tracked = self.registry.lock().expect("never poisoned").remove(id);
        if let Some(log) =
            tracked.and_then(|tracked| tracked.log.lock().expect("never poisoned").take())
        {
            log.abort();
        }
    }

    /// Waits for the container's end in a task of its own, unless one does already.
    pub(super) fn follow(self: &Arc<Self>, follow: Follow) -> std::io::Result<Arc<Tracked>> {
        let tracked = self.track(&follow)?;
        if !tracked.is_waited_for.swap(true, Ordering::AcqRel) {
            let (driver, followed) = (self.clone(), tracked.clone());
            let cancel = self.cancel.clone();
            tokio::spawn(cancel.run_until_cancelled_owned(async move {
                driver.wait(&follow, &followed).await;
                followed.is_waited_for.store(false, Ordering::Release);
            }));
        }
        Ok(tracked)
    }

    /// Notes an exit event. The `Wait` normally says the same; this is for a shim that died.
    pub(super) fn saw_exit(&self, id: &str, code: u32, at: Option<Timestamp>) {
        if let Some(tracked) = self.tracked(id) {
            *tracked.seen.lock().expect("never poisoned") = Some((code, time(at)));
        }
    }

    async fn wait(self: &Arc<Self>, follow: &Follow, tracked: &Arc<Tracked>) {
        let request = WaitRequest {
            container_id: follow.id.clone(),
            exec_id: String::new(),
        };
        let outcome = self
            .connection
            .waits()
            .wait(self.connection.request(request))
            .await;
        let (code, at) = match outcome.map_err(CallError::from) {
            Ok(response) => {
                let exit = response.into_inner();
                (exit.exit_status, time(exit.exited_at))
            }
            // containerd went away and the container lives on: the events task looks again.
            Err(CallError::Unreachable(_)) => return,
            Err(error) => {
                debug!(container = follow.id, %error, "wait ended");
                match self.end_of(&follow.id, tracked).await {
                    Some(end) => end,
                    None => return self.changed(),
                }
            }
        };
        self.settle(follow, tracked, code, at).await;
    }

    /// How a task ended whose `Wait` failed. `None` when it has not, or cannot be asked now.
    async fn end_of(&self, id: &str, tracked: &Tracked) -> Option<(u32, SystemTime)> {
        match self.task(id).await {
            Ok(Some(task)) if task.status() == Status::Stopped => {
                Some((task.exit_status, time(task.exited_at)))
            }
            Ok(None) => {
                let seen = *tracked.seen.lock().expect("never poisoned");
                let code = || tracked.process.get().and_then(PidFd::exit_code);
                Some(
                    seen.unwrap_or_else(|| {
                        (code().unwrap_or(UNKNOWN_EXIT_CODE), SystemTime::now())
                    }),
                )
            }
            Ok(Some(_)) | Err(_) => None,
        }
    }

    /// The container's task, if there is one.
    pub(super) async fn task(&self, id: &str) -> Result<Option<Process>, CallError> {
        let request = GetRequest {
            container_id: id.into(),
            exec_id: String::new(),
        };
        let mut client = self.connection.tasks();
        match call(QUICK, client.get(self.connection.request(request))).await {
            Ok(response) => Ok(response.process),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn settle(&self, follow: &Follow, tracked: &Tracked, code: u32, at: SystemTime) {
        // Read before the task is deleted: runc removes the cgroup with it.
        let oom_kills = self.sandboxes.cgroups().oom_kills(&follow.cgroup_path);
        let exit = Exit {
            exit_code: i32::try_from(code).unwrap_or(-1),
            oom_killed: oom_kills.is_some_and(|count| count > 0),
            finished_at: at,
        };
        if let Err(error) = self.record_exit(&follow.id, exit).await {
            // The task stays, and with it the exit code: the next look tries again.
            warn!(container = follow.id, %error, "cannot record an exit");
            return self.changed();
        }
        // The shim answers once it has copied the last output and closed its ends.
        if let Err(error) = self.delete_task(&follow.id).await {
            warn!(container = follow.id, %error, "cannot delete an exited task yet");
        }
        tracked.log_ended.cancel();
        let log = tracked.log.lock().expect("never poisoned").take();
        if let Some(mut log) = log
            && tokio::time::timeout(LOG_DRAIN, &mut log).await.is_err()
        {
            warn!(
                container = follow.id,
                "output is still held open after the exit"
            );
            log.abort();
        } else {
            self.let_go(follow).await;
        }
        self.registry
            .lock()
            .expect("never poisoned")
            .remove(&follow.id);
        tracked.settled.send_replace(true);
        self.changed();
    }

    /// Removes FIFOs that were read to their end. As long as they are there, somebody has to.
    async fn let_go(&self, follow: &Follow) {
        let fifos = self.fifos(follow);
        if let Err(error) = blocking(move || fifos.remove()).await {
            warn!(container = follow.id, %error, "cannot remove the FIFOs of an ended container");
        }
        self.holder.release(&follow.pod_uid, &follow.id).await;
    }

    pub(super) fn fifos(&self, follow: &Follow) -> Fifos {
        let directory = self.sandboxes.io(&follow.pod_uid, &follow.id);
        Fifos::new(directory, follow.stdin, follow.tty)
    }

    pub(super) async fn record_exit(&self, id: &str, exit: Exit) -> std::io::Result<()> {
        let (journal, id) = (self.journal.clone(), id.to_owned());
        blocking(move || {
            let mut record = journal.read(&id)?;
            if record.exit.is_none() {
                record.exit = Some(exit);
                journal.write(&id, &record, true)?;
            }
            Ok(())
        })
        .await
    }

    /// Deletes the task, which ends the shim with its last one. None is fine.
    pub(super) async fn delete_task(&self, id: &str) -> Result<(), CallError> {
        let request = DeleteTaskRequest {
            container_id: id.into(),
        };
        let mut client = self.connection.tasks();
        call(SLOW, client.delete(self.connection.request(request)))
            .await
            .or_gone()
    }
}

/// containerd's time, or now where it gave none.
pub(super) fn time(timestamp: Option<Timestamp>) -> SystemTime {
    timestamp
        .and_then(|timestamp| SystemTime::try_from(timestamp).ok())
        .filter(|time| *time > SystemTime::UNIX_EPOCH)
        .unwrap_or_else(SystemTime::now)
}
