//! Scripts show the contract; the weather shows that nothing breaks it.

use super::*;
use crate::machines::backoff::BackoffLimits;

use LifecycleAction::*;
use LifecycleInput::*;

const ENDED: LifecycleInput = SessionEnded { remedy: Remedy::Strategy };
const HALTED: LifecycleInput = SessionEnded { remedy: Remedy::Halt };
const EXIT: ServiceOutcome = ServiceOutcome::Exit { delay: Duration::from_secs(5), code: 7 };
const CLEAN: LifecycleAction = Finished(ServiceOutcome::Clean);

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn reconnect(attempts_max: u32) -> LifecycleStrategy {
    LifecycleStrategy::Reconnect(Backoff::new(BackoffLimits {
        delay_min: s(1),
        delay_max: s(60),
        attempts_max,
    }))
}

fn strategies() -> [LifecycleStrategy; 3] {
    [reconnect(0), LifecycleStrategy::Exit { delay: s(5), code: 7 }, LifecycleStrategy::Log]
}

fn machine(now: Instant, strategy: LifecycleStrategy, seed: u64) -> Lifecycle {
    let params = LifecycleParams {
        strategy,
        retry_every: Duration::from_millis(500),
        healthy_after: s(30),
        handover: s(4),
        stop_grace: s(2),
        wedged_after: s(60),
    };
    Lifecycle::new(now, params, Prng::from_seed(seed))
}

/// Plays a script that begins with an acquired lock. Time stands still at `t0`, but for
/// `DeadlineReached`, which lets it run to the deadline.
fn check(
    strategy: LifecycleStrategy,
    t0: Instant,
    script: &[LifecycleInput],
    expected: &[LifecycleAction],
    ends_as: fn(LifecycleState) -> bool,
) {
    let mut now = t0;
    let mut machine = machine(t0, strategy, 1);
    assert_eq!(machine.step(t0, DeadlineReached), [AcquireLock]);
    let mut actions = machine.step(t0, LockAcquired);
    for &input in script {
        if input == DeadlineReached {
            now = now.max(machine.deadline().expect("script waits for a deadline"));
        }
        actions.extend(machine.step(now, input));
    }
    assert_eq!(actions.first(), Some(&StartSession));
    assert_eq!(&actions[1..], expected, "{script:?}");
    assert!(ends_as(machine.state()), "{script:?}: ends as {:?}", machine.state());
}

#[test]
fn stop_while_streaming_drains_releases_and_ends_clean() {
    for strategy in strategies() {
        let t0 = Instant::now();
        let deadline = t0 + s(10);
        check(
            strategy,
            t0,
            &[StreamStarted, StopRequested { deadline }, Progressed, ENDED],
            &[DrainSession { deadline }, ReleaseLock, CLEAN],
            |state| state == LifecycleState::Stopped(ServiceOutcome::Clean),
        );
    }
}

#[test]
fn stop_wins_over_every_pending_wait() {
    for (strategy, script) in [
        (reconnect(0), vec![ENDED]),
        (reconnect(0), vec![StreamStarted, LockLost, ENDED]),
        (LifecycleStrategy::Log, vec![ENDED]),
    ] {
        let t0 = Instant::now();
        let mut machine = machine(t0, strategy, 1);
        machine.step(t0, DeadlineReached);
        machine.step(t0, LockAcquired);
        for input in script {
            machine.step(t0, input);
        }
        assert_eq!(machine.step(t0, StopRequested { deadline: t0 + s(10) }), [CLEAN]);
        assert_eq!(machine.deadline(), None);
    }
}

#[test]
fn a_lock_acquired_after_the_stop_is_released() {
    let t0 = Instant::now();
    let stop = StopRequested { deadline: t0 + s(10) };
    for (answer, expected) in [
        (LockAcquired, vec![ReleaseLock, CLEAN]),
        (LockBusy, vec![CLEAN]),
        (LockFailed, vec![CLEAN]),
    ] {
        let mut machine = machine(t0, reconnect(0), 1);
        machine.step(t0, DeadlineReached);
        assert_eq!(machine.step(t0, stop), []);
        assert_eq!(machine.step(t0, answer), expected);
    }
    let mut machine = machine(t0, reconnect(0), 1);
    machine.step(t0, DeadlineReached);
    machine.step(t0, stop);
    let deadline = machine.deadline().unwrap();
    assert_eq!(machine.step(deadline, DeadlineReached), [Finished(ServiceOutcome::DrainTimedOut)]);
    assert_eq!(machine.step(deadline, LockAcquired), [ReleaseLock], "nobody's lock");
}

#[test]
fn any_end_that_was_not_asked_for_goes_through_the_strategy() {
    let t0 = Instant::now();
    // The first start that fails, and a stream that is lost.
    for script in [vec![ENDED], vec![StreamStarted, ENDED], vec![StreamStarted, Progressed, ENDED]]
    {
        check(reconnect(0), t0, &script, &[ReleaseLock], |state| {
            matches!(state, LifecycleState::Waiting { why: Why::Backoff { attempt: 1 }, .. })
        });
        let exit = LifecycleStrategy::Exit { delay: s(5), code: 7 };
        check(exit, t0, &script, &[ReleaseLock, Finished(EXIT)], |state| {
            state == LifecycleState::Stopped(EXIT)
        });
        check(LifecycleStrategy::Log, t0, &script, &[ReleaseLock], |state| {
            state == LifecycleState::Down
        });
    }
}

#[test]
fn standing_by_is_never_an_error() {
    for strategy in strategies() {
        let t0 = Instant::now();
        let mut machine = machine(t0, strategy, 1);
        let mut now = t0;
        for input in [LockBusy, LockFailed, LockBusy].into_iter().cycle().take(300) {
            now = machine.deadline().unwrap();
            assert_eq!(machine.step(now, DeadlineReached), [AcquireLock]);
            assert_eq!(machine.step(now, input), []);
        }
        assert_eq!(now, t0 + Duration::from_millis(500) * 299, "at its own pace, not backing off");
    }
}

#[test]
fn a_lost_lock_ends_the_session_and_stands_by_whatever_the_strategy() {
    for strategy in strategies() {
        let t0 = Instant::now();
        check(
            strategy,
            t0,
            &[StreamStarted, LockLost, ENDED, DeadlineReached, LockBusy, DeadlineReached],
            &[DrainSession { deadline: t0 + s(4) }, ReleaseLock, AcquireLock, AcquireLock],
            |state| state == LifecycleState::Acquiring,
        );
    }
}

#[test]
fn a_session_that_begins_again_keeps_its_lock_whatever_the_strategy() {
    for strategy in strategies() {
        let t0 = Instant::now();
        check(
            strategy,
            t0,
            &[StreamStarted, BeginAgain, ENDED, BeginAgain, StreamStarted, BeginAgain, LockLost],
            &[
                DrainSession { deadline: t0 + s(4) },
                StartSession,
                DrainSession { deadline: t0 + s(4) },
            ],
            |state| matches!(state, LifecycleState::Draining { then: DrainFor::StandBy, .. }),
        );
    }
    // One that does not drain is given up, and then wedged; a stop goes before.
    let t0 = Instant::now();
    check(
        reconnect(0),
        t0,
        &[StreamStarted, BeginAgain, DeadlineReached, ENDED, StopRequested { deadline: t0 }, ENDED],
        &[
            DrainSession { deadline: t0 + s(4) },
            AbandonSession,
            StartSession,
            DrainSession { deadline: t0 },
            ReleaseLock,
            CLEAN,
        ],
        |state| state == LifecycleState::Stopped(ServiceOutcome::Clean),
    );
}

#[test]
fn halt_stops_the_service_whatever_the_strategy() {
    for script in [vec![HALTED], vec![StreamStarted, HALTED]] {
        for strategy in strategies() {
            let finished = Finished(ServiceOutcome::Halted);
            check(strategy, Instant::now(), &script, &[ReleaseLock, finished], |state| {
                state == LifecycleState::Stopped(ServiceOutcome::Halted)
            });
        }
    }
    let t0 = Instant::now();
    let drain = DrainSession { deadline: t0 + s(4) };
    check(
        reconnect(0),
        t0,
        &[LockLost, HALTED],
        &[drain, ReleaseLock, Finished(ServiceOutcome::Halted)],
        |state| state == LifecycleState::Stopped(ServiceOutcome::Halted),
    );
}

#[test]
fn a_drain_that_hangs_is_abandoned_then_ends_the_process() {
    let t0 = Instant::now();
    let deadline = t0 + s(10);
    let stop = StopRequested { deadline };
    check(
        reconnect(0),
        t0,
        &[stop, DeadlineReached, DeadlineReached, ENDED],
        &[DrainSession { deadline }, AbandonSession, Finished(ServiceOutcome::DrainTimedOut)],
        |state| state == LifecycleState::Stopped(ServiceOutcome::DrainTimedOut),
    );
    check(
        reconnect(0),
        t0,
        &[stop, DeadlineReached, ENDED],
        &[DrainSession { deadline }, AbandonSession, ReleaseLock, CLEAN],
        |state| state == LifecycleState::Stopped(ServiceOutcome::Clean),
    );
}

#[test]
fn a_session_that_fails_goes_through_the_strategy_or_ends_the_process() {
    let t0 = Instant::now();
    check(
        reconnect(0),
        t0,
        &[StreamStarted, SessionFailing, SessionFailing, ENDED],
        &[ReleaseLock],
        |state| matches!(state, LifecycleState::Waiting { why: Why::Backoff { attempt: 1 }, .. }),
    );
    check(
        reconnect(0),
        t0,
        &[StreamStarted, SessionFailing, HALTED],
        &[ReleaseLock, Finished(ServiceOutcome::Halted)],
        |state| state == LifecycleState::Stopped(ServiceOutcome::Halted),
    );
    check(
        reconnect(0),
        t0,
        &[StreamStarted, SessionFailing, DeadlineReached, ENDED],
        &[Finished(ServiceOutcome::DrainTimedOut)],
        |state| state == LifecycleState::Stopped(ServiceOutcome::DrainTimedOut),
    );
}

#[test]
fn a_stop_hastens_a_drain_and_never_prolongs_it() {
    let t0 = Instant::now();
    let mut machine = machine(t0, LifecycleStrategy::Log, 1);
    machine.step(t0, DeadlineReached);
    machine.step(t0, LockAcquired);
    machine.step(t0, LockLost);
    machine.step(t0, StopRequested { deadline: t0 + s(100) });
    assert_eq!(machine.deadline(), Some(t0 + s(4)));
    machine.step(t0, StopRequested { deadline: t0 + s(3) });
    assert_eq!(machine.deadline(), Some(t0 + s(3)));
    assert_eq!(machine.step(t0 + s(3), DeadlineReached), [AbandonSession]);
    assert_eq!(machine.deadline(), Some(t0 + s(5)));
}

#[test]
fn a_stop_cuts_the_long_wait_for_a_session_that_lost_its_lock() {
    let t0 = Instant::now();
    let mut machine = machine(t0, reconnect(0), 1);
    machine.step(t0, DeadlineReached);
    machine.step(t0, LockAcquired);
    machine.step(t0, LockLost);
    machine.step(t0 + s(4), DeadlineReached);
    assert_eq!(machine.deadline(), Some(t0 + s(64)));
    machine.step(t0 + s(10), StopRequested { deadline: t0 + s(20) });
    assert_eq!(machine.deadline(), Some(t0 + s(22)));
    assert_eq!(machine.step(t0 + s(21), ENDED), [ReleaseLock, CLEAN]);
}

/// One failed session after another, each streaming for `lived`; the attempts as they are counted.
fn attempts(attempts_max: u32, sessions: usize, lived: Duration, progress: bool) -> Vec<u32> {
    let mut now = Instant::now();
    let mut machine = machine(now, reconnect(attempts_max), 1);
    let mut counted = Vec::new();
    for _ in 0..sessions {
        now = now.max(machine.deadline().unwrap());
        machine.step(now, DeadlineReached);
        machine.step(now, LockAcquired);
        machine.step(now, StreamStarted);
        if progress {
            machine.step(now, Progressed);
        }
        now += lived;
        machine.step(now, ENDED);
        match machine.state() {
            LifecycleState::Waiting { why: Why::Backoff { attempt }, .. } => counted.push(attempt),
            LifecycleState::Stopped(ServiceOutcome::GaveUp) => break,
            state => panic!("{state:?}"),
        }
    }
    counted
}

#[test]
fn a_primary_that_is_back_ends_the_wait_and_counts_as_an_attempt() {
    let t0 = Instant::now();
    let mut machine = machine(t0, reconnect(0), 1);
    assert_eq!(machine.step(t0, PrimaryBack), [], "it waits for the lock, not for Postgres");
    machine.step(t0, DeadlineReached);
    for attempt in 1..=3 {
        assert_eq!(machine.step(t0, LockAcquired), [StartSession]);
        assert_eq!(machine.step(t0, PrimaryBack), [], "late");
        machine.step(t0, ENDED);
        let why = Why::Backoff { attempt };
        assert!(matches!(machine.state(), LifecycleState::Waiting { why: now, .. } if now == why));
        assert_eq!(machine.step(t0, PrimaryBack), [AcquireLock]);
    }
}

#[test]
fn only_a_healthy_stream_resets_the_attempts() {
    assert_eq!(attempts(0, 4, s(29), false), [1, 2, 3, 4], "streaming alone is not health");
    assert_eq!(attempts(0, 4, s(30), false), [1, 1, 1, 1], "half a minute is");
    assert_eq!(attempts(0, 4, s(0), true), [1, 1, 1, 1], "so is progress");
}

#[test]
fn gives_up_after_attempts_max_failures_in_a_row() {
    assert_eq!(attempts(3, 9, s(1), false), [1, 2, 3]);
    assert_eq!(attempts(3, 9, s(1), true).len(), 9);
    assert_eq!(attempts(0, 300, s(1), false).len(), 300, "0 is unlimited");
}

/// What the outside holds, by what it was told.
#[derive(Default)]
struct World {
    asked: bool,
    locked: bool,
    session: bool,
    drain_told: bool,
    abandon_told: bool,
    stop_requested: bool,
    finished: Option<ServiceOutcome>,
}

impl World {
    fn offer(&self, state: LifecycleState, prng: &mut Prng, now: Instant) -> LifecycleInput {
        match prng.below(17) {
            0..=2 if self.asked => LockAcquired,
            3 if self.asked => LockBusy,
            4 if self.asked => LockFailed,
            5 | 6 if self.session && !self.drain_told && state == LifecycleState::Starting => {
                StreamStarted
            }
            7 if self.session => Progressed,
            8 if self.session => ENDED,
            9 if self.session && prng.below(10) == 0 => HALTED,
            13 if self.session && prng.below(4) == 0 => SessionFailing,
            16 if self.session => BeginAgain,
            // Late messages of a session or a lock that is gone.
            10 if prng.below(4) == 0 => [LockLost, Progressed, PrimaryBack][prng.below(3) as usize],
            11 if self.locked => LockLost,
            12 if prng.below(40) == 0 => StopRequested { deadline: now + s(prng.below(30)) },
            _ => DeadlineReached,
        }
    }

    fn hear(&mut self, input: LifecycleInput) {
        match input {
            LockAcquired => (self.asked, self.locked) = (false, true),
            LockBusy | LockFailed => self.asked = false,
            SessionEnded { .. } => self.session = false,
            StopRequested { .. } => self.stop_requested = true,
            DeadlineReached | LockLost | PrimaryBack | BeginAgain | StreamStarted | Progressed
            | SessionFailing => (),
        }
    }

    fn perform(&mut self, action: LifecycleAction, seed: u64) {
        assert!(self.finished.is_none(), "seed {seed}: {action:?} after the end");
        match action {
            AcquireLock => {
                assert!(!self.asked && !self.locked && !self.session, "seed {seed}");
                assert!(!self.stop_requested, "seed {seed}");
                self.asked = true;
            }
            StartSession => {
                assert!(self.locked && !self.session && !self.stop_requested, "seed {seed}");
                self.session = true;
                (self.drain_told, self.abandon_told) = (false, false);
            }
            DrainSession { .. } => {
                assert!(self.session && !self.drain_told, "seed {seed}");
                self.drain_told = true;
            }
            AbandonSession => {
                assert!(self.session && self.drain_told && !self.abandon_told, "seed {seed}");
                self.abandon_told = true;
            }
            ReleaseLock => {
                assert!(self.locked && !self.session, "seed {seed}");
                self.locked = false;
            }
            Finished(outcome) => {
                let wedged = outcome == ServiceOutcome::DrainTimedOut;
                assert_eq!(wedged, self.locked || self.session || self.asked, "seed {seed}");
                self.finished = Some(outcome);
            }
        }
    }
}

/// Goal: no order of events starts a second session, one without the lock or one after a stop,
/// keeps a lock, gets stuck, or exits for a reason that the strategy does not know.
/// Method: a model of the outside, driven by a seed, offers what could really arrive, late
/// messages included. Time jumps, so hours pass in microseconds.
#[test]
fn survives_any_weather() {
    let mut ends = std::collections::HashSet::new();
    for seed in 0..6_000 {
        let mut prng = Prng::from_seed(seed);
        let mut now = Instant::now();
        let attempts_max = [0, 4][prng.below(2) as usize];
        let which = prng.below(3);
        let strategy = match which {
            0 => reconnect(attempts_max),
            1 => LifecycleStrategy::Exit { delay: s(5), code: 7 },
            _ => LifecycleStrategy::Log,
        };
        let mut machine = machine(now, strategy, seed);
        let mut world = World::default();
        for _ in 0..400 {
            now += Duration::from_millis(prng.below(10_000));
            let input = world.offer(machine.state(), &mut prng, now);
            world.hear(input);
            for action in machine.step(now, input) {
                world.perform(action, seed);
            }
            if let Some(outcome) = world.finished {
                match outcome {
                    ServiceOutcome::Clean => assert!(world.stop_requested, "seed {seed}"),
                    ServiceOutcome::GaveUp => {
                        assert!(which == 0 && attempts_max != 0, "seed {seed}")
                    }
                    ServiceOutcome::Exit { .. } => assert_eq!(which, 1, "seed {seed}"),
                    ServiceOutcome::Halted | ServiceOutcome::DrainTimedOut => (),
                }
                assert_eq!(machine.state(), LifecycleState::Stopped(outcome), "seed {seed}");
                ends.insert(std::mem::discriminant(&outcome));
                break;
            }
            let waits = machine.deadline().is_some() || machine.state() == LifecycleState::Down;
            assert!(waits || world.asked || world.session, "seed {seed}: {:?}", machine.state());
        }
        // Whatever it was at: a stop ends it in bounded time with no help from outside.
        if world.finished.is_none() {
            let mut input = StopRequested { deadline: now + s(10) };
            let last = now + s(10) + s(2);
            for _ in 0..4 {
                world.hear(input);
                for action in machine.step(now, input) {
                    world.perform(action, seed);
                }
                let Some(at) = machine.deadline() else { break };
                now = now.max(at);
                input = DeadlineReached;
            }
            assert!(world.finished.is_some() && now <= last, "seed {seed}: {:?}", machine.state());
        }
    }
    assert_eq!(ends.len(), 5, "every way to end was seen");
}
