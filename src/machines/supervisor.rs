//! What the process does about its services: when to stop all, and with which code to exit.
//!
//! ```text
//!   Running --- signal, a service's Exit, a wedged service ---> Stopping ---> Exited
//!      |                                             last one ended,  ^
//!      |                                             second signal,   |
//!      |                                             out of time -----+
//!      +--- last service gave up: code 1 -----------------------------+
//! ```
//!
//! While a service waits for an operator (halted) the process stays, to say so on its HTTP port: a
//! supervisor that starts it again and again would change nothing, and hide the reason.
//!
//! It does not stop threads or exit by itself, and [`super::lifecycle`] decides what a service's
//! failure means. A service that stays down under strategy `log` is alive here: it has not
//! finished.

use std::time::{Duration, Instant};

use super::after;
use super::lifecycle::ServiceOutcome;

#[derive(Debug, Clone, Copy)]
pub struct SupervisorParams {
    /// How long services may drain after the first signal.
    pub shutdown_timeout: Duration,
    /// How long to wait for services past their deadline; more than `lifecycle::Params`'
    /// `stop_grace`, which is what they need to report that they are wedged.
    pub backstop: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SupervisorInput {
    DeadlineReached,
    /// SIGTERM or SIGINT.
    Signal,
    ServiceFinished {
        service: usize,
        outcome: ServiceOutcome,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SupervisorAction {
    /// Tell every service that has not finished: drain until then. May come again, earlier.
    StopServices { deadline: Instant },
    /// Exit now, without waiting for threads that are still running.
    Exit { code: u8 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SupervisorState {
    Running,
    Stopping { deadline: Instant, code: u8, signalled: bool },
    Exited,
}

/// Someone should notice: no service is left, or not everything ended in order.
const FAILED: u8 = 1;

#[derive(Debug)]
pub struct Supervisor {
    params: SupervisorParams,
    state: SupervisorState,
    /// By service; a service reports its end once, but be deaf to a second report.
    alive: Vec<bool>,
    /// One of them waits for an operator.
    halted: bool,
}

impl Supervisor {
    /// `services` are numbered from 0. A process without any has nothing to supervise.
    pub fn new(services: usize, params: SupervisorParams) -> Supervisor {
        assert!(0 < services, "a process without services is refused when settings are read");
        Supervisor {
            params,
            state: SupervisorState::Running,
            alive: vec![true; services],
            halted: false,
        }
    }

    /// When to send `DeadlineReached` next. Sending it early is harmless.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            SupervisorState::Stopping { deadline, .. } => {
                Some(after(deadline, self.params.backstop))
            }
            SupervisorState::Running | SupervisorState::Exited => None,
        }
    }

    pub fn step(&mut self, now: Instant, input: SupervisorInput) -> Vec<SupervisorAction> {
        if input == SupervisorInput::DeadlineReached && self.deadline().is_none_or(|at| now < at) {
            return vec![];
        }
        if let SupervisorInput::ServiceFinished { service, outcome } = input {
            match self.alive.get_mut(service) {
                Some(alive) if *alive => *alive = false,
                Some(_) | None => return vec![],
            }
            self.halted |= outcome == ServiceOutcome::Halted;
        }
        let (state, actions) = self.transition(now, input);
        self.state = state;
        actions
    }

    fn transition(
        &self,
        now: Instant,
        input: SupervisorInput,
    ) -> (SupervisorState, Vec<SupervisorAction>) {
        use SupervisorInput::*;
        use SupervisorState::*;

        let none_left = !self.alive.contains(&true);
        match (self.state, input) {
            (Running, Signal) if none_left => exit(0),
            (Running, Signal) => self.stop(after(now, self.params.shutdown_timeout), 0, true),
            (Running, ServiceFinished { outcome, .. }) => match outcome {
                // At most `delay`: with nothing left to drain there is nothing to wait for.
                ServiceOutcome::Exit { code, .. } if none_left => exit(code),
                ServiceOutcome::Exit { delay, code } => self.stop(after(now, delay), code, false),
                ServiceOutcome::DrainTimedOut if none_left => exit(FAILED),
                ServiceOutcome::DrainTimedOut => {
                    self.stop(after(now, self.params.shutdown_timeout), FAILED, false)
                }
                ServiceOutcome::Clean | ServiceOutcome::GaveUp | ServiceOutcome::Halted
                    if none_left && !self.halted =>
                {
                    exit(FAILED)
                }
                ServiceOutcome::Clean | ServiceOutcome::GaveUp | ServiceOutcome::Halted => {
                    (Running, vec![])
                }
            },

            (Stopping { code, signalled: true, .. }, Signal) => exit(code.max(FAILED)),
            // The services were stopping for a reason of their own; this is the first signal.
            (Stopping { deadline, code, signalled: false }, Signal) => {
                let asked = after(now, self.params.shutdown_timeout).min(deadline);
                self.stop(asked, code, true)
            }
            (Stopping { deadline, code, signalled }, ServiceFinished { outcome, .. }) => {
                let code = match outcome {
                    ServiceOutcome::DrainTimedOut => code.max(FAILED),
                    // It was asked to stop; what else befell it in that moment was logged.
                    ServiceOutcome::Clean
                    | ServiceOutcome::GaveUp
                    | ServiceOutcome::Halted
                    | ServiceOutcome::Exit { .. } => code,
                };
                if none_left {
                    exit(code)
                } else {
                    (Stopping { deadline, code, signalled }, vec![])
                }
            }
            (Stopping { code, .. }, DeadlineReached) => exit(code.max(FAILED)),

            (state @ (Running | Exited), DeadlineReached)
            | (state @ Exited, Signal | ServiceFinished { .. }) => (state, vec![]),
        }
    }

    fn stop(
        &self,
        deadline: Instant,
        code: u8,
        signalled: bool,
    ) -> (SupervisorState, Vec<SupervisorAction>) {
        (
            SupervisorState::Stopping { deadline, code, signalled },
            vec![SupervisorAction::StopServices { deadline }],
        )
    }
}

fn exit(code: u8) -> (SupervisorState, Vec<SupervisorAction>) {
    (SupervisorState::Exited, vec![SupervisorAction::Exit { code }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use SupervisorAction::*;
    use SupervisorInput::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn finished(service: usize, outcome: ServiceOutcome) -> SupervisorInput {
        ServiceFinished { service, outcome }
    }

    const EXIT: ServiceOutcome = ServiceOutcome::Exit { delay: Duration::from_secs(5), code: 7 };

    /// Plays inputs at seconds from the start, for two services.
    fn check(
        script: &[(u64, SupervisorInput)],
        expected: impl Fn(Instant) -> Vec<SupervisorAction>,
    ) {
        let t0 = Instant::now();
        let params = SupervisorParams { shutdown_timeout: s(30), backstop: s(3) };
        let mut machine = Supervisor::new(2, params);
        let mut actions = Vec::new();
        for &(at, input) in script {
            actions.extend(machine.step(t0 + s(at), input));
        }
        assert_eq!(actions, expected(t0), "{script:?}");
    }

    #[test]
    fn a_signal_drains_all_and_exits_clean() {
        check(
            &[
                (1, Signal),
                (2, finished(0, ServiceOutcome::Clean)),
                (3, finished(1, ServiceOutcome::Clean)),
            ],
            |t0| vec![StopServices { deadline: t0 + s(31) }, Exit { code: 0 }],
        );
    }

    #[test]
    fn the_second_signal_exits_at_once() {
        check(&[(1, Signal), (2, Signal), (3, Signal)], |t0| {
            vec![StopServices { deadline: t0 + s(31) }, Exit { code: 1 }]
        });
    }

    #[test]
    fn services_that_never_report_do_not_keep_the_process() {
        check(&[(1, Signal), (33, DeadlineReached), (34, DeadlineReached)], |t0| {
            vec![StopServices { deadline: t0 + s(31) }, Exit { code: 1 }]
        });
    }

    #[test]
    fn a_wedged_service_makes_the_exit_a_failure() {
        let wedged = finished(0, ServiceOutcome::DrainTimedOut);
        check(&[(1, Signal), (32, wedged), (32, finished(1, ServiceOutcome::Clean))], |t0| {
            vec![StopServices { deadline: t0 + s(31) }, Exit { code: 1 }]
        });
        check(&[(1, wedged), (2, finished(1, ServiceOutcome::Clean))], |t0| {
            vec![StopServices { deadline: t0 + s(31) }, Exit { code: 1 }]
        });
    }

    #[test]
    fn strategy_exit_lets_the_others_drain_for_its_delay() {
        check(&[(1, finished(0, EXIT)), (2, finished(1, ServiceOutcome::Clean))], |t0| {
            vec![StopServices { deadline: t0 + s(6) }, Exit { code: 7 }]
        });
        check(&[(1, finished(0, EXIT)), (2, finished(1, EXIT))], |t0| {
            vec![StopServices { deadline: t0 + s(6) }, Exit { code: 7 }]
        });
        check(&[(1, finished(0, EXIT)), (9, DeadlineReached)], |t0| {
            vec![StopServices { deadline: t0 + s(6) }, Exit { code: 7 }]
        });
    }

    #[test]
    fn the_first_signal_during_strategy_exit_keeps_its_deadline_and_code() {
        check(&[(1, finished(0, EXIT)), (2, Signal), (3, Signal)], |t0| {
            let deadline = t0 + s(6);
            vec![StopServices { deadline }, StopServices { deadline }, Exit { code: 7 }]
        });
    }

    #[test]
    fn the_last_service_alive_takes_the_process_with_it() {
        check(&[(1, finished(0, ServiceOutcome::GaveUp))], |_| vec![]);
        check(&[(1, finished(0, ServiceOutcome::GaveUp)), (1, finished(0, EXIT))], |_| vec![]);
        check(
            &[(1, finished(0, ServiceOutcome::GaveUp)), (2, finished(1, ServiceOutcome::GaveUp))],
            |_| vec![Exit { code: 1 }],
        );
        check(&[(1, finished(0, ServiceOutcome::Halted)), (2, finished(1, EXIT))], |_| {
            vec![Exit { code: 7 }]
        });
    }

    #[test]
    fn a_process_that_waits_for_an_operator_stays_until_it_is_told_to_stop() {
        let halted = |service| finished(service, ServiceOutcome::Halted);
        check(&[(1, halted(0)), (2, halted(1))], |_| vec![]);
        check(&[(1, halted(0)), (2, finished(1, ServiceOutcome::GaveUp))], |_| vec![]);
        check(&[(1, halted(0)), (2, halted(1)), (3, Signal)], |_| vec![Exit { code: 0 }]);
    }

    #[test]
    fn a_signal_after_one_service_gave_up_waits_for_the_other_only() {
        check(
            &[
                (1, finished(1, ServiceOutcome::GaveUp)),
                (2, Signal),
                (3, finished(0, ServiceOutcome::Clean)),
            ],
            |t0| vec![StopServices { deadline: t0 + s(32) }, Exit { code: 0 }],
        );
    }

    /// Goal: once anything asked for the end, the process exits, once, within the bounds.
    #[test]
    fn always_exits_once_and_in_time() {
        for seed in 0..2_000 {
            let mut prng = crate::machines::prng::Prng::from_seed(seed);
            let params = SupervisorParams { shutdown_timeout: s(30), backstop: s(3) };
            let mut now = Instant::now();
            let mut machine = Supervisor::new(3, params);
            let mut asked_at = None;
            let mut exits = 0;
            for _ in 0..100 {
                now += s(prng.below(10));
                if let Some(at) = machine.deadline() {
                    now = now.min(at);
                }
                let outcomes = [
                    ServiceOutcome::Clean,
                    ServiceOutcome::GaveUp,
                    ServiceOutcome::Halted,
                    EXIT,
                    ServiceOutcome::DrainTimedOut,
                ];
                let input = match prng.below(4) {
                    0 => finished(prng.below(4) as usize, outcomes[prng.below(5) as usize]),
                    1 if prng.below(20) == 0 => Signal,
                    _ => DeadlineReached,
                };
                for action in machine.step(now, input) {
                    assert_eq!(exits, 0, "seed {seed}: acted after the exit");
                    match action {
                        StopServices { deadline } => {
                            assert!(deadline <= now + s(30), "seed {seed}");
                            asked_at = asked_at.or(Some(now));
                        }
                        Exit { .. } => exits += 1,
                    }
                }
                if exits == 0
                    && let Some(at) = asked_at
                {
                    assert!(now <= at + s(33), "seed {seed}: not out in time");
                    assert!(machine.deadline().is_some(), "seed {seed}: stuck");
                }
            }
        }
    }
}
