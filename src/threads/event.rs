//! What reaches a coordinator, from any thread that knows something of its service.

use crossbeam_channel::Sender;

use crate::error::Error;
use crate::machines::lifecycle::LifecycleInput;

#[derive(Debug)]
pub enum Event {
    Lifecycle(LifecycleInput),
    /// The session's own thread is about to end; `None` when it was told to.
    SessionEnded(Option<Error>),
    /// Answered with the number of the service, for as long as it hears.
    Pulse(Sender<usize>),
}
