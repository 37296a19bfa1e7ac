//! The one thread on which the SDK's futures run: callers hand a future over and block until it is through.
//!
//! Must never see: what the futures do.
//!
//! Invariant: nobody waits longer than the deadline that came with the future, plus [`MARGIN`], whatever the future does.

use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A future gives up at the deadline by itself. If the thread hangs, the caller gives up this much later.
const MARGIN: Duration = Duration::from_secs(2);

/// Why a future gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// The deadline passed.
    Late,
    /// It panicked, or there is no thread to run it on.
    Broken,
}

/// Runs `work` on the thread and waits for it until `deadline`.
pub(super) fn run<T: Send + 'static>(
    deadline: Instant,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, Lost> {
    if deadline <= Instant::now() {
        return Err(Lost::Late); // nobody is asked what nobody waits for
    }
    let (answer, answered) = sync_channel(1);
    let job = async move {
        let done = tokio::time::timeout_at(deadline.into(), work).await;
        // The SDK decodes what it was told into buffers that are gone now, but not from this thread's stack.
        crate::secret::scrub_deep_stack();
        let _ = answer.send(done.map_err(|_| Lost::Late)); // nobody waits any more: fine
    };
    let thread = thread().ok_or(Lost::Broken)?;
    thread.send(Box::pin(job)).map_err(|_| Lost::Broken)?;
    let patience = deadline.saturating_duration_since(Instant::now()) + MARGIN;
    answered.recv_timeout(patience).map_err(|e| match e {
        RecvTimeoutError::Timeout => Lost::Late,
        RecvTimeoutError::Disconnected => Lost::Broken,
    })?
}

/// Started by the first call; it lives as long as the process.
fn thread() -> Option<&'static UnboundedSender<Job>> {
    static THREAD: OnceLock<Option<UnboundedSender<Job>>> = OnceLock::new();
    THREAD
        .get_or_init(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().ok()?;
            let (jobs, mut queue) = unbounded_channel::<Job>();
            let work = move || {
                runtime.block_on(async {
                    while let Some(job) = queue.recv().await {
                        // A panic ends its own task, and the caller sees that no answer came.
                        tokio::spawn(job);
                    }
                });
            };
            std::thread::Builder::new().name("wrapdisk-azure".into()).spawn(work).ok()?;
            Some(jobs)
        })
        .as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(100)
    }

    #[test]
    fn an_answer_a_delay_and_a_panic_are_told_apart() {
        assert_eq!(run(soon() + Duration::from_secs(60), async { 7 }), Ok(7));
        assert_eq!(run(soon(), std::future::pending::<()>()), Err(Lost::Late));
        let panics = async { std::hint::black_box(None::<u8>).expect("a bug") };
        assert_eq!(run(soon() + Duration::from_secs(60), panics), Err(Lost::Broken));
        assert_eq!(run(soon() + Duration::from_secs(60), async { 8 }), Ok(8), "the thread lives on");
    }
}
