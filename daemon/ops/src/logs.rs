//! What a step prints: passed on at once, and clipped when it is too much.

use std::time::{Duration, Instant};

use base::progress::{Stream, VertexSink};
use parking_lot::Mutex;
use std::sync::Arc;

/// How much one step may print before it is clipped.
#[derive(Debug, Clone, Copy)]
pub struct LogLimits {
    /// Bytes in all; `None` is no limit.
    pub size: Option<u64>,
    /// Bytes per second on average; `None` is no limit.
    pub speed: Option<u64>,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { size: Some(2 << 20), speed: Some(200 << 10) }
    }
}

/// The output of one step. Clones write to the same.
#[derive(Clone)]
pub(crate) struct StepLog {
    progress: VertexSink,
    limits: LogLimits,
    started: Instant,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    written: u64,
    clipping: bool,
}

impl StepLog {
    pub(crate) fn new(progress: VertexSink, limits: LogLimits) -> Self {
        Self { progress, limits, started: Instant::now(), state: Arc::default() }
    }

    /// Passes `data` on, as far as the limits allow. The first byte that is
    /// held back is answered with a line that says so.
    pub(crate) fn write(&self, stream: Stream, data: &[u8]) {
        let mut state = self.state.lock();
        let (allowed, which) = self.allowed(self.started.elapsed());
        let room = allowed.map_or(u64::MAX, |a| a.saturating_sub(state.written));
        let take = usize::try_from(room).unwrap_or(usize::MAX).min(data.len());
        if take > 0 {
            state.clipping = false;
            state.written += take as u64;
            self.progress.log(stream, &data[..take]);
        }
        if take < data.len() && !std::mem::replace(&mut state.clipping, true) {
            self.progress.log(stream, format!("\n[output clipped, log limit {which} reached]\n"));
        }
    }

    /// Bytes allowed after `elapsed`, and the limit that says so.
    fn allowed(&self, elapsed: Duration) -> (Option<u64>, String) {
        let by_speed = self.limits.speed.map(|s| s.saturating_mul(elapsed.as_secs() + 1));
        match (by_speed, self.limits.size) {
            (Some(speed), size) if size.is_none_or(|size| speed <= size) => {
                (Some(speed), format!("{}/s", binary(self.limits.speed.unwrap_or(0))))
            }
            (_, Some(size)) => (Some(size), binary(size)),
            (_, None) => (None, String::new()),
        }
    }
}

/// `2MiB`, `200KiB`.
fn binary(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 20 && b % (1 << 20) == 0 => format!("{}MiB", b >> 20),
        b if b >= 1 << 10 && b % (1 << 10) == 0 => format!("{}KiB", b >> 10),
        b => format!("{b}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Digest;
    use base::progress::{Event, Report, Sink};

    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<u8>>>);
    impl Report for Seen {
        fn report(&self, event: Event) {
            if let Event::Log(log) = event {
                self.0.lock().extend(log.data);
            }
        }
    }

    #[test]
    fn clips_once_and_says_so() {
        let seen = Seen::default();
        let sink = Sink::new(seen.clone()).vertex(Digest::of("v"));
        let log = StepLog::new(sink, LogLimits { size: Some(4), speed: None });
        for _ in 0..3 {
            log.write(Stream::Stdout, b"abc");
        }
        let text = String::from_utf8(seen.0.lock().clone()).unwrap();
        assert_eq!(text, "abca\n[output clipped, log limit 4B reached]\n");
    }
}
