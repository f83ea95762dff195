#[derive(Default)]
pub struct Options {
    pub key: String,
    pub scope: String,
}
pub fn idempotency_options(_: Option<&[u8]>) -> Options {
    Options::default()
}
#[derive(Default)]
pub struct Derived {
    pub trigger_source: String,
    pub root_trigger_source: String,
    pub task_kind: String,
    pub external_deployment_id: String,
}
pub fn derive(_: Option<&[u8]>, _: Option<&[u8]>) -> Derived {
    Derived::default()
}
pub fn worker_queue(q: &[u8]) -> &[u8] {
    q
}
