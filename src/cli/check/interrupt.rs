//! A check that is interrupted still drops its trial tables: it ends at once if there is none, and
//! otherwise when the last one is gone.

use std::process;

use parking_lot::Mutex;

/// As a shell says of a command that SIGINT has ended.
const EXIT_INTERRUPTED: i32 = 130;

struct State {
    trials: usize,
    is_stopped: bool,
}

static STATE: Mutex<State> = Mutex::new(State { trials: 0, is_stopped: false });

/// SIGINT, SIGTERM and SIGHUP from now on.
pub(super) fn listen() {
    let handler = || {
        let mut state = STATE.lock();
        state.is_stopped = true;
        end_if_free(&state);
    };
    // Without it a signal ends the process as usual, and the next check reports what is left.
    let _ = ctrlc::set_handler(handler);
}

/// While it lives there may be a trial table.
pub(super) struct TrialGuard;

impl TrialGuard {
    pub(super) fn begin() -> TrialGuard {
        let mut state = STATE.lock();
        end_if_free(&state);
        state.trials += 1;
        TrialGuard
    }
}

impl Drop for TrialGuard {
    fn drop(&mut self) {
        let mut state = STATE.lock();
        state.trials -= 1;
        end_if_free(&state);
    }
}

fn end_if_free(state: &State) {
    if state.is_stopped && state.trials == 0 {
        process::exit(EXIT_INTERRUPTED);
    }
}
