use crate::support::postgres::{Postgres, Stop};
use crate::support::sample;

#[test]
fn a_standby_follows_and_is_promoted() {
    let mut primary = Postgres::start();
    primary.insert("Session", &sample::session("a"));
    let standby = primary.start_standby();
    assert!(standby.is_standby());
    primary.insert("Session", &sample::session("b"));
    standby.wait_replayed(&primary);
    let count = r#"SELECT count(*) FROM public."Session""#;
    assert_eq!(standby.value(count).as_deref(), Some("2"));
    primary.stop(Stop::Immediate);
    standby.promote();
    assert_eq!(standby.timeline(), 2);
    standby.insert("Session", &sample::session("c"));

    // The old primary's port is taken by a standby of the new one.
    let second = standby.start_standby_with(primary.port(), &[]);
    second.wait_replayed(&standby);
    assert_eq!(second.value(count).as_deref(), Some("3"));
}
