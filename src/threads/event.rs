//! The events of a coordinator, from any thread of its service.

use crossbeam_channel::Sender;

use crate::error::Error;
use crate::machines::lifecycle::LifecycleInput;

#[derive(Debug)]
pub enum Event {
    Lifecycle(LifecycleInput),
    /// The session's own thread is about to end; `None` if that was requested.
    SessionEnded(Option<Error>),
    /// Answered with the number of the service, for as long as it hears.
    Pulse(Sender<usize>),
}
