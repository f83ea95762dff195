use super::*;

const CLUSTER: u64 = 7;

fn at(host: usize) -> HostPlace {
    HostPlace { host, address: 0 }
}

fn known(system_identifier: u64, timeline: u32) -> KnownServer {
    KnownServer { system_identifier, timeline }
}

fn primary(timeline: u32) -> SeenServer {
    SeenServer { in_recovery: false, identity: known(CLUSTER, timeline) }
}

const STANDBY: SeenServer = SeenServer {
    in_recovery: true,
    identity: KnownServer { system_identifier: CLUSTER, timeline: 1 },
};

/// Names resolved to one address each.
fn search(known: Option<KnownServer>, hosts: usize, now: Instant) -> HostSearch {
    let mut search = HostSearch::new(known, hosts, 1 < hosts, now + Duration::from_secs(10));
    for host in 0..hosts {
        search.on_resolved(host, format!("h{host}"), Ok(1));
    }
    search
}

fn hosts(count: usize) -> Vec<Host> {
    (0..count).map(|n| Host::new(format!("h{n}"), 1)).collect()
}

fn refusals(search: HostSearch, count: usize) -> Vec<String> {
    let refused = search.into_refused(&hosts(count), Duration::from_secs(10));
    refused.into_iter().map(|(name, error)| format!("{name}: {}", error.cause)).collect()
}

#[test]
fn the_only_server_is_taken_as_soon_as_it_answers() {
    let now = Instant::now();
    let mut search = search(None, 1, now);
    assert_eq!(search.deadline(), Some(now + Duration::from_secs(10)));
    search.on_seen(now, at(0), "h0".into(), primary(1));
    assert_eq!(search.deadline(), None);
    assert_eq!(search.chosen(), Some((at(0), known(CLUSTER, 1))));
    assert_eq!(search.others(), None);
}

#[test]
fn a_primary_waits_a_moment_for_the_others_to_object_and_no_longer() {
    let now = Instant::now();
    let mut search = search(Some(known(CLUSTER, 1)), 3, now);
    search.on_seen(now, at(1), "h1".into(), primary(1));
    assert_eq!(search.deadline(), Some(now + OTHERS_MAX));
    search.on_seen(now, at(0), "h0".into(), STANDBY);
    assert_eq!(search.deadline(), Some(now + OTHERS_MAX), "the third may still speak");
    search.on_time(now + OTHERS_MAX - Duration::from_millis(1));
    assert!(search.deadline().is_some());
    search.on_time(now + OTHERS_MAX);
    assert_eq!(search.deadline(), None);
    assert_eq!(search.chosen().unwrap().0, at(1));
}

#[test]
fn of_two_primaries_the_later_timeline_is_taken_whoever_comes_first() {
    let now = Instant::now();
    for order in [[0, 1], [1, 0]] {
        let mut search = search(None, 2, now);
        for host in order {
            let timeline = if host == 1 { 5 } else { 4 };
            search.on_seen(now, at(host), format!("h{host}"), primary(timeline));
        }
        assert_eq!(search.chosen(), Some((at(1), known(CLUSTER, 5))));
        assert_eq!(
            search.others().unwrap(),
            "more than one server claims to be the primary: using `h1` on timeline 5, and not `h0` \
             on timeline 4"
        );
    }
}

#[test]
fn one_server_under_two_addresses_is_no_contest_and_the_first_is_taken() {
    let now = Instant::now();
    let mut search = HostSearch::new(None, 1, true, now + Duration::from_secs(1));
    search.on_resolved(0, "h0".into(), Ok(2));
    search.on_seen(now, HostPlace { host: 0, address: 1 }, "h0 (::1)".into(), primary(1));
    search.on_seen(now, at(0), "h0 (127.0.0.1)".into(), primary(1));
    assert_eq!(search.deadline(), None);
    assert_eq!(search.chosen().unwrap().0, at(0));
    assert_eq!(search.others(), None);
}

#[test]
fn standbys_alone_are_a_failover_under_way() {
    let now = Instant::now();
    let mut search = search(None, 2, now);
    search.on_seen(now, at(1), "h1".into(), STANDBY);
    search.on_refused(at(0), "h0".into(), SqlError::new(ErrorKind::Unreachable, "refused"));
    assert_eq!(search.deadline(), None);
    assert_eq!(search.chosen(), None);
    assert_eq!(refusals(search, 2), ["h0: refused", "h1: server is a standby"]);
}

#[test]
fn a_standby_that_is_promoted_while_another_hangs_is_taken() {
    let now = Instant::now();
    let mut search = search(Some(known(CLUSTER, 1)), 2, now);
    for _ in 0..3 {
        search.on_seen(now, at(1), "h1".into(), STANDBY);
        assert_eq!(search.deadline(), Some(now + Duration::from_secs(10)));
    }
    search.on_seen(now, at(1), "h1".into(), primary(2));
    assert_eq!(search.deadline(), Some(now + OTHERS_MAX));
    search.on_time(now + OTHERS_MAX);
    assert_eq!(search.chosen(), Some((at(1), known(CLUSTER, 2))));
    assert_eq!(refusals(search, 2), ["h0:1: no answer within 10.0s"], "it is not refused any more");
}

#[test]
fn a_primary_that_a_failover_left_behind_is_passed_over_while_there_may_be_another() {
    let now = Instant::now();
    let mut several = search(Some(known(CLUSTER, 2)), 2, now);
    several.on_seen(now, at(0), "h0".into(), primary(1));
    assert_eq!(several.deadline(), Some(now + Duration::from_secs(10)), "the other is waited for");
    several.on_time(now + Duration::from_secs(10));
    assert_eq!(several.chosen(), None);
    assert_eq!(
        refusals(several, 2),
        [
            "h0: it is a primary on timeline 1, which a failover to timeline 2 has left behind",
            "h1:1: no answer within 10.0s"
        ]
    );

    // Where no other can be meant, the lineage says what it thinks of it.
    let mut alone = search(Some(known(CLUSTER, 2)), 1, now);
    alone.on_seen(now, at(0), "h0".into(), primary(1));
    assert_eq!(alone.chosen(), Some((at(0), known(CLUSTER, 1))));
}

#[test]
fn another_cluster_is_taken_only_if_nobody_of_ours_is_there() {
    let now = Instant::now();
    let foreign = SeenServer { in_recovery: false, identity: known(8, 9) };
    let mut search = search(Some(known(CLUSTER, 1)), 2, now);
    search.on_seen(now, at(0), "h0".into(), foreign);
    assert_eq!(search.deadline(), Some(now + Duration::from_secs(10)), "ours is waited for");
    assert_eq!(search.chosen(), Some((at(0), known(8, 9))), "if need be");
    search.on_seen(now, at(1), "h1".into(), primary(1));
    assert_eq!(search.chosen(), Some((at(1), known(CLUSTER, 1))));
    assert!(search.others().unwrap().contains("`h0` of cluster 8"));
}

#[test]
fn a_name_that_is_not_resolved_says_so_and_holds_up_nobody() {
    let now = Instant::now();
    let mut search = HostSearch::new(None, 3, true, now + Duration::from_secs(10));
    search.on_resolved(0, "h0:1".into(), Err("no such name".into()));
    search.on_resolved(1, "h1:1".into(), Ok(1));
    search.on_seen(now, at(1), "h1:1".into(), STANDBY);
    assert!(search.deadline().is_some());
    search.on_end();
    assert_eq!(search.deadline(), None);
    assert_eq!(
        refusals(search, 3),
        [
            "h0:1: no such name",
            "h1:1: server is a standby",
            "h2:1: no answer from the name resolver in time"
        ]
    );
}
