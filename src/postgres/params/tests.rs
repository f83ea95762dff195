use super::*;

fn parse(text: &str) -> (PostgresParams, Vec<String>) {
    PostgresParams::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// `user:password@hosts/database sslmode target timeout`, then what else is set.
#[track_caller]
fn check(text: &str, expected: &str) {
    let (params, warnings) = parse(text);
    let hosts: Vec<String> = params.hosts.iter().map(Host::to_string).collect();
    let mut found = format!(
        "{}:{}@{}/{} {:?} {:?} {}s",
        params.user,
        params.password.as_ref().map_or("-", Secret::expose),
        hosts.join(","),
        params.database,
        params.ssl_mode,
        params.target,
        params.connect_timeout.as_secs()
    );
    let files =
        [("root", &params.ssl_root_cert), ("cert", &params.ssl_cert), ("key", &params.ssl_key)];
    for (name, file) in files {
        if let Some(file) = file {
            found.push_str(&format!(" {name}={}", file.display()));
        }
    }
    if let Some(options) = &params.options {
        found.push_str(&format!(" options={options}"));
    }
    assert_eq!(found, expected, "{text}");
    assert!(warnings.is_empty(), "{text}: {warnings:?}");
}

#[test]
fn defaults_fill_what_is_not_said() {
    let defaults = "postgres:-@localhost:5432/postgres Prefer Any 10s";
    check("postgres://", defaults);
    check("postgresql://localhost", defaults);
    check("postgres:///?host=", defaults);
    check("host=localhost", defaults);
    check("postgres://u@h", "u:-@h:5432/u Prefer Any 10s");
    check("user=u password=''", "u:-@localhost:5432/u Prefer Any 10s");
}

#[test]
fn urls_are_taken_apart() {
    check("postgres://u:p@h:6000/db", "u:p@h:6000/db Prefer Any 10s");
    check("postgres://u%40x:p%2F%25%40@h/d%20b", "u@x:p/%@@h:5432/d b Prefer Any 10s");
    check("postgres://u:p@w:x@h/db", "u:p@w:x@h:5432/db Prefer Any 10s");
    check("postgres://u:p#w+x@h/db", "u:p#w+x@h:5432/db Prefer Any 10s");
    check(
        "postgres://u@[::1]:6000,[fe80::1%25eth0]/db?target_session_attrs=any",
        "u:-@[::1]:6000,[fe80::1%eth0]:5432/db Prefer Any 10s",
    );
    check("postgres://h?user=u&password=p%26&dbname=db&port=6000", "u:p&@h:6000/db Prefer Any 10s");
}

#[test]
fn several_hosts_seek_the_one_that_takes_writes() {
    check("postgres://u@a,b:6000/db", "u:-@a:5432,b:6000/db Prefer ReadWrite 10s");
    check("host=a,b port=6000 user=u", "u:-@a:6000,b:6000/u Prefer ReadWrite 10s");
    check("host=a,b port=1,2 target_session_attrs=any user=u", "u:-@a:1,b:2/u Prefer Any 10s");
    check("postgres://u@h?target_session_attrs=primary", "u:-@h:5432/u Prefer ReadWrite 10s");
    check("postgres://u@h?target_session_attrs=read-write", "u:-@h:5432/u Prefer ReadWrite 10s");
}

#[test]
fn socket_directories_are_hosts() {
    let socket = "u:-@/run/pg:5432/db Prefer Any 10s";
    check("postgres://u@%2Frun%2Fpg/db", socket);
    check("postgres://u@/db?host=/run/pg", socket);
    check("host=/run/pg user=u dbname=db", socket);
}

#[test]
fn pairs_follow_libpq() {
    check(
        "host=h user = u  password='it\\'s \\\\ a=b' dbname=db\n",
        "u:it's \\ a=b@h:5432/db Prefer Any 10s",
    );
    check("user=u password=a\\ b://c host=h", "u:a b://c@h:5432/u Prefer Any 10s");
    check("user=a user=u", "u:-@localhost:5432/u Prefer Any 10s");
    check("user=u hostaddr=10.0.0.1", "u:-@10.0.0.1:5432/u Prefer Any 10s");
    check(
        "user=u options='-c geqo=off'",
        "u:-@localhost:5432/u Prefer Any 10s options=-c geqo=off",
    );
}

#[test]
fn tls_is_as_in_libpq() {
    for (text, mode) in [
        ("sslmode=disable", "Disable"),
        ("sslmode=allow", "Prefer"),
        ("sslmode=prefer", "Prefer"),
        ("sslmode=require", "Require"),
        ("sslmode=no-verify", "Require"),
        ("sslmode=verify-ca", "VerifyCa"),
        ("sslmode=verify-full", "VerifyFull"),
        ("ssl=true", "Require"),
        ("ssl=0", "Disable"),
        ("sslmode=verify-full&ssl=true", "VerifyFull"),
    ] {
        check(&format!("postgres://u@h?{text}"), &format!("u:-@h:5432/u {mode} Any 10s"));
    }
    check("postgres://u@h?sslrootcert=system", "u:-@h:5432/u VerifyFull Any 10s root=system");
    check(
        "postgres://u@h?sslmode=verify-ca&sslrootcert=/r&sslcert=/c&sslkey=/k",
        "u:-@h:5432/u VerifyCa Any 10s root=/r cert=/c key=/k",
    );
}

#[test]
fn what_other_clients_need_is_borne() {
    check(
        "postgres://u@h/db?schema=public&connection_limit=5&pool_timeout=2&pgbouncer=false\
         &sslaccept=accept_invalid_certs&keepalives=1&keepalives_idle=30&connect_timeout=3",
        "u:-@h:5432/db Prefer Any 3s",
    );
}

#[test]
fn what_may_be_missed_is_said() {
    for (parameter, expected) in [
        ("pgbouncer=true", "needs a direct connection"),
        ("schema=app", "schema `public`"),
        ("application_name=x", "walhouse gives its own"),
        ("sslaccept=strict", "`sslmode=verify-full`"),
        ("channel_binding=require", "does not require it"),
        ("connect_timeout=0", "10 s"),
        ("sslcrl=/x", "unknown parameter `sslcrl` is ignored"),
        ("gssencmode=require", "unknown parameter `gssencmode` is ignored"),
    ] {
        let (params, warnings) = parse(&format!("postgres://u:hunter2@h?{parameter}"));
        let [warning] = warnings.as_slice() else { panic!("{parameter}: {warnings:?}") };
        assert!(warning.contains(expected), "{parameter}: {warning}");
        assert_eq!(params.connect_timeout.as_secs(), 10);
    }
}

#[test]
fn bad_texts_are_refused_with_the_reason() {
    let value = |parameter: &str| match parameter {
        "sslmode" => parse_ssl_mode("").unwrap_err(),
        "ssl" => parse_ssl("").unwrap_err(),
        "connect_timeout" => parse_timeout("", &mut vec![]).unwrap_err(),
        _ => parse_target("").unwrap_err(),
    };
    for (text, expected) in [
        ("", PostgresParamsError::Pairs),
        ("hunter2", PostgresParamsError::Pairs),
        ("=x", PostgresParamsError::Pairs),
        ("a b=c", PostgresParamsError::Pairs),
        ("user='u", PostgresParamsError::Quote),
        ("user='u\\", PostgresParamsError::Quote),
        ("mysql://h", PostgresParamsError::NotPostgres),
        ("postgres://u:1/w@h/db", PostgresParamsError::StrayAt),
        ("postgres://u:1?w@h/db", PostgresParamsError::StrayAt),
        ("postgres://u:a@b?w=1@h/db", PostgresParamsError::StrayAt),
        ("postgres://u:p%w@h", PostgresParamsError::Escape),
        ("postgres://u:p%2@h", PostgresParamsError::Escape),
        ("postgres://u:%ff@h", PostgresParamsError::Escape),
        ("postgres://u:%00@h", PostgresParamsError::Nul),
        ("postgres://u@h?sslmode", PostgresParamsError::Query),
        ("postgres://::1/db", PostgresParamsError::Ipv6),
        ("postgres://[::1/db", PostgresParamsError::Ipv6),
        ("postgres://[::1]x/db", PostgresParamsError::Port),
        ("postgres://u:pw", PostgresParamsError::Port),
        ("postgres://h:0", PostgresParamsError::Port),
        ("postgres://h:65536", PostgresParamsError::Port),
        ("host=a,b,c port=1,2", PostgresParamsError::PortCount),
        ("postgres://a%20b", PostgresParamsError::HostName),
        ("host=a/b", PostgresParamsError::HostName),
        ("postgres://h?sslmode=on", value("sslmode")),
        ("postgres://h?ssl=on", value("ssl")),
        ("postgres://h?connect_timeout=soon", value("connect_timeout")),
        ("postgres://h?connect_timeout=3601", value("connect_timeout")),
        ("postgres://h?target_session_attrs=standby", value("target_session_attrs")),
        ("postgres://h?sslcert=/c", PostgresParamsError::CertWithoutKey),
        ("postgres://h?sslkey=/k", PostgresParamsError::CertWithoutKey),
        ("postgres://h?sslrootcert=system&sslmode=require", PostgresParamsError::WeakSystemRoots),
        ("host=h hostaddr=10.0.0.1", PostgresParamsError::HostAddr),
        ("service=x", PostgresParamsError::Service),
    ] {
        assert_eq!(PostgresParams::parse(text), Err(expected), "{text}");
    }
}

#[test]
fn display_and_debug_hide_the_password() {
    let (params, _) = parse("postgres://u:hunter2@a,[::1]:6000/db");
    assert_eq!(params.to_string(), "u@a:5432,[::1]:6000/db");
    assert!(!format!("{params:?}").contains("hunter2"));
}

proptest::proptest! {
    #[test]
    fn no_text_can_panic(text in "(postgres://)?[a-z0-9@:/?=%&,'\\\\\\[\\] é]{0,40}") {
        let _ = PostgresParams::parse(&text);
    }
}
