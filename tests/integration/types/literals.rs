//! Literals of every type: the edges of its values, and random ones.

use fastrand::Rng;
use postgres::Client;

use crate::support::database::rows;

type Random = Box<dyn Fn(&mut Rng) -> String>;

pub struct Column {
    pub of: String,
    pub edges: Vec<String>,
    pub random: Random,
    /// What ClickHouse is to print of a value, `$`: a text, or JSON of texts for its parts.
    pub postgres: String,
    pub clickhouse: String,
}

fn column(of: &str, edges: &[&str], random: impl Fn(&mut Rng) -> String + 'static) -> Column {
    Column {
        of: of.to_owned(),
        edges: edges.iter().map(|edge| (*edge).to_owned()).collect(),
        random: Box::new(random),
        postgres: "format('%s', $)".to_owned(),
        clickhouse: "$".to_owned(),
    }
}

impl Column {
    fn postgres(self, expression: &str) -> Column {
        Column { postgres: expression.to_owned(), ..self }
    }

    fn clickhouse(self, expression: &str) -> Column {
        Column { clickhouse: expression.to_owned(), ..self }
    }
}

const ODD: [&str; 24] = [
    "a", "B", "0", " ", "\t", "\n", "'", "\"", "\\", "{", "}", "(", ")", "[", "]", ",", ";",
    "NULL", "null", "é", "ßß", "🦀", "=>", "x",
];

pub fn text(rng: &mut Rng) -> String {
    if rng.u8(..40) == 0 {
        return "long ".repeat(rng.usize(1..2_000));
    }
    (0..rng.usize(..7)).map(|_| ODD[rng.usize(..ODD.len())]).collect()
}

fn word(rng: &mut Rng) -> String {
    (0..rng.usize(1..5)).map(|_| rng.alphabetic()).collect()
}

/// Up to so many digits before and behind the point.
fn number(rng: &mut Rng, whole: usize, fraction: usize) -> String {
    let mut digits = |most: usize| -> String {
        let count = if most == 0 { 0 } else { rng.usize(..=most) };
        (0..count).map(|_| ['0', '0', '9', '5', '1', '7', '3'][rng.usize(..7)]).collect()
    };
    let (whole, fraction) = (digits(whole), digits(fraction));
    let sign = if rng.bool() { "-" } else { "" };
    match fraction.is_empty() {
        true => format!("{sign}0{whole}"),
        false => format!("{sign}0{whole}.{fraction}"),
    }
}

fn date(rng: &mut Rng) -> String {
    let year = if rng.u8(..4) == 0 { rng.u32(1..200_000) } else { rng.u32(1_890..2_310) };
    let era = if year < 4_700 && rng.u8(..12) == 0 { " BC" } else { "" };
    format!("{year:04}-{:02}-{:02}{era}", rng.u8(1..=12), rng.u8(1..=28))
}

fn time(rng: &mut Rng) -> String {
    let fraction = [0, 1, 500_000, 999_999, 120_000][rng.usize(..5)];
    format!("{:02}:{:02}:{:02}.{fraction:06}", rng.u8(..24), rng.u8(..60), rng.u8(..60))
}

fn moment(rng: &mut Rng) -> String {
    let date = date(rng);
    let (day, era) = match date.strip_suffix(" BC") {
        Some(day) => (day.to_owned(), " BC"),
        None => (date, ""),
    };
    format!("{day} {}{era}", time(rng))
}

fn float(rng: &mut Rng) -> String {
    match rng.u8(..4) {
        0 => f64::from_bits(rng.u64(..)).to_string(),
        1 => format!("{}", rng.i32(-100..100)),
        2 => format!("{:e}", 2_f64.powi(rng.i32(-1_000..1_000))),
        _ => format!("{}e{}", rng.i32(-999..999), rng.i32(-30..30)),
    }
    .replace("inf", "Infinity")
}

fn float4(rng: &mut Rng) -> String {
    match rng.u8(..3) {
        0 => f32::from_bits(rng.u32(..)).to_string(),
        1 => format!("{:e}", 2_f32.powi(rng.i32(-126..127))),
        _ => format!("{}e{}", rng.i32(-999..999), rng.i32(-30..30)),
    }
    .replace("inf", "Infinity")
}

fn interval(rng: &mut Rng) -> String {
    let mut part = |most: i32| rng.i32(-most..most) / [1, 1_000, most][rng.usize(..3)];
    let (months, days, hours) = (part(1_000_000), part(1_000_000), part(2_000_000));
    format!("{months} months {days} days {hours} hours {}.{:06} seconds", part(60), part(60).abs())
}

fn point(rng: &mut Rng) -> String {
    format!("({},{})", float(rng), float(rng))
}

fn points(rng: &mut Rng) -> String {
    let points: Vec<String> = (0..rng.usize(1..5)).map(|_| point(rng)).collect();
    points.join(",")
}

fn address(rng: &mut Rng) -> String {
    match rng.bool() {
        true => format!("{}.{}.0.{}", rng.u8(..), rng.u8(..), rng.u8(..)),
        false => {
            let words: Vec<String> = (0..8)
                .map(|_| if rng.bool() { "0".to_owned() } else { format!("{:x}", rng.u16(..)) })
                .collect();
            words.join(":")
        }
    }
}

fn network(rng: &mut Rng) -> String {
    let address = address(rng);
    let bits = if address.contains(':') { 129 } else { 33 };
    if rng.bool() { address } else { format!("{address}/{}", rng.u8(..bits)) }
}

fn bits(rng: &mut Rng, count: usize) -> String {
    (0..count).map(|_| if rng.bool() { '1' } else { '0' }).collect()
}

fn bytes(rng: &mut Rng) -> String {
    let digits: String = (0..rng.usize(..20)).map(|_| format!("{:02x}", rng.u8(..))).collect();
    format!("\\x{digits}")
}

fn uuid(rng: &mut Rng) -> String {
    format!("{:032x}", rng.u128(..))
}

fn json(rng: &mut Rng) -> String {
    match rng.u8(..5) {
        0 => "null".to_owned(),
        1 => number(rng, 5, 3).replacen("0", "1", 1),
        2 => serde_json::to_string(&text(rng)).unwrap(),
        3 => format!("[{}, {}]", json(rng), json(rng)),
        _ => format!("{{{}: {}}}", serde_json::to_string(&text(rng)).unwrap(), json(rng)),
    }
}

fn lexeme(rng: &mut Rng) -> String {
    let text = format!("{}{}", ["", "it's ", "b\\c", "é"][rng.usize(..4)], word(rng));
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

fn tsvector(rng: &mut Rng) -> String {
    let lexemes: Vec<String> = (0..rng.usize(..6))
        .map(|_| {
            let lexeme = lexeme(rng);
            match rng.usize(..3) {
                0 => lexeme,
                count => {
                    let position = |_| {
                        let weight = ["", "A", "B", "C", "D"][rng.usize(..5)];
                        format!("{}{weight}", rng.u16(1..16_000))
                    };
                    format!("{lexeme}:{}", (0..count).map(position).collect::<Vec<_>>().join(","))
                }
            }
        })
        .collect();
    lexemes.join(" ")
}

fn tsquery(rng: &mut Rng, depth: usize) -> String {
    match rng.u8(..6) {
        0 if depth != 0 => format!("!({})", tsquery(rng, depth - 1)),
        1..=4 if depth != 0 => {
            let operator = ["&", "|", "<->", "<7>"][rng.usize(..4)];
            format!("({}) {operator} ({})", tsquery(rng, depth - 1), tsquery(rng, depth - 1))
        }
        _ => format!("{}{}", lexeme(rng), ["", ":*", ":A", ":BCD", ":*AD"][rng.usize(..5)]),
    }
}

/// As in an array, in quotes.
fn escaped(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn array(
    rng: &mut Rng,
    dimensions: usize,
    delimiter: char,
    of: &dyn Fn(&mut Rng) -> String,
) -> String {
    if dimensions == 1 && rng.u8(..8) == 0 {
        return "{}".to_owned();
    }
    let sizes: Vec<usize> = (0..dimensions).map(|_| rng.usize(1..4)).collect();
    fn nested(
        rng: &mut Rng,
        sizes: &[usize],
        delimiter: char,
        of: &dyn Fn(&mut Rng) -> String,
    ) -> String {
        let Some((size, inner)) = sizes.split_first() else {
            return if rng.u8(..6) == 0 { "NULL".to_owned() } else { escaped(&of(rng)) };
        };
        let parts: Vec<String> = (0..*size).map(|_| nested(rng, inner, delimiter, of)).collect();
        format!("{{{}}}", parts.join(&delimiter.to_string()))
    }
    nested(rng, &sizes, delimiter, of)
}

fn arrays(
    of: &str,
    dimensions: usize,
    element: impl Fn(&mut Rng) -> String + 'static,
    edges: &[&str],
) -> Column {
    let delimiter = if of.starts_with("box") { ';' } else { ',' };
    let random = move |rng: &mut Rng| array(rng, dimensions, delimiter, &element);
    column(&format!("{of}{}", "[]".repeat(dimensions)), edges, random)
        .postgres("array_to_json($::text[])")
}

/// Of two bounds in order.
fn range(rng: &mut Rng, bounds: impl Fn(&mut Rng) -> [String; 2]) -> String {
    let [lower, upper] = bounds(rng).map(|bound| match rng.u8(..6) {
        0 => String::new(),
        _ => format!("\"{bound}\""),
    });
    match rng.u8(..10) {
        0 => "empty".to_owned(),
        _ => format!("{}{lower},{upper}{}", ["[", "("][rng.usize(..2)], ["]", ")"][rng.usize(..2)]),
    }
}

fn ints(rng: &mut Rng) -> [String; 2] {
    let lower = rng.i32(-1_000..1_000);
    [lower.to_string(), (lower + rng.i32(..100).abs() % 100).to_string()]
}

fn days(rng: &mut Rng) -> [String; 2] {
    let year = rng.i32(1_800..2_400);
    [format!("{year}-02-28"), format!("{}-03-01", year + rng.i32(..9).abs() % 9)]
}

fn moments(rng: &mut Rng) -> [String; 2] {
    let [lower, upper] = days(rng);
    [format!("{lower} {}", time(rng)), format!("{upper} {}", time(rng))]
}

const OF_RANGE: &str = "jsonb_build_array(lower($)::text, upper($)::text, CASE WHEN isempty($) THEN 'empty' \
     ELSE CASE WHEN lower_inc($) THEN '[' ELSE '(' END || CASE WHEN upper_inc($) THEN ']' ELSE ')' END END)";

fn ranges(of: &str, bounds: fn(&mut Rng) -> [String; 2], edges: &[&str]) -> [Column; 3] {
    let one = move |rng: &mut Rng| range(rng, bounds);
    let several = move |rng: &mut Rng| {
        let ranges: Vec<String> = (0..rng.usize(..4)).map(|_| range(rng, bounds)).collect();
        format!("{{{}}}", ranges.join(","))
    };
    let parts = OF_RANGE.replace('$', "r");
    let multi = of.replace("range", "multirange");
    let all = format!(
        "coalesce((SELECT jsonb_agg({parts} ORDER BY n) FROM unnest($) WITH ORDINALITY u(r, n)), '[]')"
    );
    let in_array = format!(
        "coalesce((SELECT jsonb_agg(CASE WHEN r IS DISTINCT FROM NULL THEN {parts} END ORDER BY n) \
         FROM unnest($) WITH ORDINALITY u(r, n)), '[]')"
    );
    [
        column(of, edges, one).postgres(OF_RANGE),
        column(&multi, &["{}"], several).postgres(&all),
        arrays(of, 1, one, &["{}", "{NULL,empty}"]).postgres(&in_array),
    ]
}

const OF_INTERVAL: &str = "jsonb_build_array(\
     (extract(year FROM $) * 12 + extract(month FROM $))::int8::text, extract(day FROM $)::int8::text, \
     (extract(hour FROM $) * 3600000000 + extract(minute FROM $) * 60000000 \
      + extract(microseconds FROM $))::int8::text)";

fn field(rng: &mut Rng, text: String) -> String {
    match rng.u8(..6) {
        0 => String::new(),
        _ => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\"\"")),
    }
}

fn composite(rng: &mut Rng) -> String {
    let fields = [
        rng.i32(..).to_string(),
        text(rng),
        number(rng, 6, 3),
        moment(rng),
        array(rng, 1, ',', &text),
        range(rng, moments),
        ["sad", "it's \"ok\""][rng.usize(..2)].to_owned(),
    ];
    let fields: Vec<String> = fields.into_iter().map(|text| field(rng, text)).collect();
    format!("({})", fields.join(","))
}

fn hstore(rng: &mut Rng) -> String {
    let pairs: Vec<String> = (0..rng.usize(..5))
        .map(|_| {
            let value = if rng.u8(..4) == 0 { "NULL".to_owned() } else { escaped(&text(rng)) };
            format!("{}=>{value}", escaped(&text(rng)))
        })
        .collect();
    pairs.join(", ")
}

fn geometry(rng: &mut Rng) -> String {
    let srid = ["", "SRID=4326;"][rng.usize(..2)];
    let mut at = || format!("{} {}", rng.i32(-180..180), rng.i32(-90..90));
    let (a, b) = (at(), at());
    match rng.u8(..5) {
        0 => format!("{srid}POINT({a})"),
        1 => format!("{srid}POINT Z ({a} 1.5)"),
        2 => format!("{srid}LINESTRING({a}, {b})"),
        3 => format!("{srid}MULTIPOINT ZM (({a} 1 2), ({b} 3 4))"),
        _ => format!("{srid}POLYGON(({a}, {b}, 1 2, {a}))"),
    }
}

/// Makes the types that a user has made, and lists a column of each type.
pub fn columns(client: &mut Client) -> Vec<Column> {
    let version: i32 =
        rows(client, "SHOW server_version_num")[0][0].as_deref().unwrap().parse().unwrap();
    client
        .batch_execute(
            "CREATE TYPE public.mood AS ENUM ('sad', 'it''s \"ok\"', 'é', '');
             CREATE DOMAIN public.whole AS int CHECK (value <> 13);
             CREATE DOMAIN public.deep AS public.whole;
             CREATE DOMAIN public.price AS numeric(10, 2);
             CREATE DOMAIN public.tags AS text[];
             CREATE TYPE public.floats AS RANGE (subtype = float8, multirange_type_name = public.floatses);
             CREATE TYPE public.several AS (a int, b text, c numeric(10, 2), d timestamptz,
                 e text[], f tsrange, g public.mood)",
        )
        .unwrap();
    let mut all = usual(version);
    all.extend(parts());
    all.extend(own());
    all.extend(of_extensions(client));
    all
}

fn usual(version: i32) -> Vec<Column> {
    let decimal_edges =
        &["0", "-0.01", "1.10", "99999999.99", "-99999999.99", "NaN", "12345678.90", "0.00"];
    let mut all = vec![
        column("bool", &["t", "f"], |rng| rng.bool().to_string()).postgres("$::text"),
        column("int2", &["-32768", "32767", "0"], |rng| rng.i16(..).to_string()),
        column("int4", &["-2147483648", "2147483647"], |rng| rng.i32(..).to_string()),
        column("int8", &["-9223372036854775808", "9223372036854775807"], |rng| {
            rng.i64(..).to_string()
        }),
        column("oid", &["0", "4294967295"], |rng| rng.u32(..).to_string()),
        column("xid", &["4294967295"], |rng| rng.u32(..).to_string()),
        column("cid", &["4294967295"], |rng| rng.u32(..).to_string()),
        column("xid8", &["18446744073709551615"], |rng| rng.u64(..).to_string()),
        column("pg_lsn", &["0/0", "FFFFFFFF/FFFFFFFF"], |rng| {
            format!("{:X}/{:X}", rng.u32(..), rng.u32(..))
        })
        .postgres("($ - '0/0'::pg_lsn)::text"),
        column("tid", &["(0,0)", "(4294967295,65535)"], |rng| {
            format!("({},{})", rng.u32(..), rng.u16(..))
        }),
        column("pg_snapshot", &["10:20:10,14,15", "1:1:"], |rng| {
            format!("{0}:{1}:{0}", rng.u32(1..9), rng.u32(10..))
        }),
        column("txid_snapshot", &["10:20:10,14,15"], |_| "7:7:".to_owned()),
        column("regclass", &["pg_class", "0"], |_| "information_schema.tables".to_owned()),
        column("float4", &["NaN", "Infinity", "-Infinity", "-0", "1e-45", "3.4028235e38"], float4),
        column(
            "float8",
            &["NaN", "-Infinity", "-0", "5e-324", "1.7976931348623157e308", "1e23", "1e15", "0.1"],
            float,
        ),
        column(
            "numeric",
            &[
                "0",
                "-0.5",
                "NaN",
                "Infinity",
                "-Infinity",
                "1e37",
                "1e38",
                "-1e100",
                "1e-38",
                "1e-39",
                "0.00010000",
                "12345.678900",
                "1e16000",
                "99999999999999999999999999999999999999.99999999999999999999999999999999999999",
            ]
            .iter()
            .filter(|edge| 140_000 <= version || !edge.contains("Inf"))
            .copied()
            .collect::<Vec<_>>(),
            |rng| {
                let (whole, fraction) = [(4, 3), (45, 45), (20, 20)][rng.usize(..3)];
                number(rng, whole, fraction)
            },
        ),
        column("numeric(10, 2)", decimal_edges, |rng| number(rng, 8, 4)),
        column("numeric(9, 9)", &["0.123456789"], |rng| number(rng, 0, 9)),
        column("numeric(18, 0)", &["999999999999999999"], |rng| number(rng, 18, 0)),
        column("numeric(38, 10)", &["NaN"], |rng| number(rng, 28, 12)),
        column("numeric(76, 20)", &["NaN"], |rng| number(rng, 56, 22)),
        column("numeric(100, 10)", &["NaN"], |rng| number(rng, 90, 12)),
        column("money", &["-92233720368547758.08", "92233720368547758.07", "-0.01"], |rng| {
            number(rng, 8, 2)
        })
        .postgres("$::numeric::text"),
        column("\"char\"", &["", "a", "\\", "\""], |rng| rng.alphabetic().to_string()),
        column("char(5)", &["", "a", "  a", "é"], |rng| text(rng).chars().take(5).collect())
            .postgres("rtrim(format('%s', $), ' ')"),
        column("bpchar", &["a  "], text),
        column("varchar(20)", &["", "NULL"], |rng| text(rng).chars().take(20).collect()),
        column("text", &["", "NULL", "\\", "\\N", "'"], text),
        column("name", &["", "a b"], |rng| text(rng).chars().take(15).collect()),
        column("bytea", &["\\x", "\\x00ff5c22"], bytes)
            .postgres("encode($, 'hex')")
            .clickhouse("lower(hex($))"),
        column(
            "date",
            &[
                "infinity",
                "-infinity",
                "4713-01-01 BC",
                "0001-12-31 BC",
                "5874897-12-31",
                "9999-12-31",
                "1899-12-31",
                "2299-12-31",
                "1969-12-31",
                "2000-02-29",
            ],
            date,
        ),
        column(
            "timestamp",
            &[
                "infinity",
                "-infinity",
                "4713-01-01 00:00:00 BC",
                "294276-12-31 23:59:59.999999",
                "0001-01-01 00:00:00.000001 BC",
                "9999-12-31 23:59:59.999999",
                "1969-12-31 23:59:59.999999",
                "1970-01-01 00:00:00",
            ],
            moment,
        ),
        column("timestamptz", &["infinity", "-infinity", "1999-12-31 23:59:59.5"], moment),
        column("timestamp(3)", &["1999-12-31 23:59:59.5"], moment),
        column("time", &["24:00:00", "00:00:00"], time),
        column("timetz", &["24:00:00+15:59", "00:00:00-15:59:59", "12:00:00+05:30"], |rng| {
            format!("{}{}{:02}", time(rng), ["+", "-"][rng.usize(..2)], rng.u8(..15))
        }),
        column("uuid", &["00112233-4455-6677-8899-aabbccddeeff"], uuid),
        column(
            "inet",
            &[
                "0.0.0.0/0",
                "::",
                "::1",
                "::ffff:1.2.3.4",
                "::1.2.3.4",
                "1::",
                "0:0:0:0:0:1:0:0",
                "::/0",
                "1:0:0:2:0:0:0:3/64",
                "::1:2:3",
            ],
            network,
        ),
        column("cidr", &["10.0.0.0/8", "1.2.3.4/32"], address),
        column("macaddr", &["08:00:2b:01:02:03"], |rng| format!("{:012x}", rng.u64(..1 << 48))),
        column("macaddr8", &["08:00:2b:01:02:03:04:05"], |rng| format!("{:016x}", rng.u64(..))),
        column("bit(5)", &["00001"], |rng| bits(rng, 5)),
        column("varbit", &["", "1", "10101010", "101010101"], |rng| {
            let count = rng.usize(..30);
            bits(rng, count)
        }),
        column("json", &["{\"a\":  1}", "[]", "null", "{\"a\": 1, \"a\": 2}"], json),
        column("jsonb", &["{\"a\":  1.10}", "[]", "null", "12345678901234567890123"], json),
        column("jsonpath", &["$.a", "strict $[*] ? (@.b > 1)"], |_| "$.x[1 to 2]".to_owned()),
        column("xml", &["<a/>", "<?xml version=\"1.0\"?><a b=\"c\">é</a>", "text"], |rng| {
            format!("<{0}>{1}</{0}>", word(rng), rng.u32(..))
        }),
        column("tsvector", &["", "'it''s':1A,2 b"], tsvector),
        column("tsquery", &["", "!a", "a <-> (b <-> c)", "!(a & b) | c"], |rng| tsquery(rng, 4)),
    ];
    if 170_000 <= version {
        let edges = ["infinity", "-infinity"];
        // The parts of an infinite one are infinite too, and none of them a number.
        all.push(column("interval", &edges, |_| "infinity".to_owned()).postgres(
            "(CASE WHEN 'infinity' = $ THEN '[\"2147483647\", \"2147483647\", \"9223372036854775807\"]' \
             ELSE '[\"-2147483648\", \"-2147483648\", \"-9223372036854775808\"]' END)::jsonb",
        ));
    }
    if 150_000 <= version {
        all.push(column("numeric(3, 5)", &["0.00012", "-0.00999", "NaN"], |rng| {
            format!("0.00{:03}", rng.u16(..999))
        }));
        all.push(column("numeric(5, -2)", &["12345", "-9999900", "0"], |rng| number(rng, 6, 2)));
        all.push(column("numeric(70, -7)", &["12345678"], |rng| number(rng, 70, 0)));
    }
    all
}

/// Values of several parts.
fn parts() -> Vec<Column> {
    let mut all = vec![
        column(
            "interval",
            &[
                "0",
                "1 day",
                "24:00:00",
                "-1 year 2 months",
                "-00:00:00.5",
                "1 mon -1 day 00:00:00.000001",
            ],
            interval,
        )
        .postgres(OF_INTERVAL),
        column("point", &["(0,0)", "(-0,NaN)", "(Infinity,1e300)"], point)
            .postgres("jsonb_build_array($[0]::text, $[1]::text)"),
        column("line", &["{1,-1,0}"], |rng| format!("{{{},1,{}}}", float(rng), float(rng))),
        column("lseg", &["[(0,0),(1,1)]"], |rng| format!("[{},{}]", point(rng), point(rng))),
        column("box", &["(0,0),(1,1)", "(1e23,5),(2,3)"], |rng| {
            format!("{},{}", point(rng), point(rng))
        }),
        column("path", &["[(0,0),(1,1)]", "((0,0),(1,1))"], |rng| {
            let points = points(rng);
            if rng.bool() { format!("[{points}]") } else { format!("({points})") }
        }),
        column("polygon", &["((0,0),(1,1),(1,0))"], |rng| format!("({})", points(rng))),
        column("circle", &["<(0,0),1>"], |rng| format!("<{},{}>", point(rng), rng.u32(..))),
        column("int2vector", &["", "1 2 -3"], |rng| format!("{} {}", rng.i16(..), rng.i16(..)))
            .postgres("array_to_json($::int2[]::text[])"),
        column("oidvector", &["", "1 4294967295"], |rng| rng.u32(..).to_string())
            .postgres("array_to_json($::oid[]::text[])"),
        arrays("int4", 1, |rng| rng.i32(..).to_string(), &["{}", "[0:1]={1,2}", "{{1},{2}}"]),
        arrays("int8", 2, |rng| rng.i64(..).to_string(), &["{}", "{1}", "{{1,NULL},{3,4}}"]),
        arrays("text", 3, text, &["{}", "{{{a}}}", "[-1:-1][2:2][3:3]={{{a}}}"]),
        arrays("text", 1, text, &["{}", "{\"\",NULL,\"NULL\",null,\"a\\\"\\\\b\"}"]),
        arrays("numeric(10, 2)", 1, |rng| number(rng, 8, 2), &["{NaN,1.5}"]),
        arrays("numeric", 1, |rng| number(rng, 30, 30), &["{1e39,1}"]),
        arrays("timestamptz", 1, moment, &["{infinity,NULL}"]),
        arrays("date", 1, date, &["{infinity,NULL}"]),
        arrays("float8", 2, float, &["{{NaN,-0}}"]),
        arrays("bool", 1, |rng| rng.bool().to_string(), &["{t,f,NULL}"]),
        arrays("uuid", 1, uuid, &["{}"]),
        arrays("char(3)", 1, |rng| text(rng).chars().take(3).collect(), &["{a,\" b \"}"]),
        arrays("jsonb", 1, json, &["{\"{\\\"a\\\": 1}\"}"]),
        arrays("tsvector", 1, tsvector, &["{}"]),
        arrays("bit(3)", 1, |rng| bits(rng, 3), &["{101}"]),
        arrays("bytea", 1, bytes, &["{\"\\\\x00\"}"])
            .clickhouse("arrayMap(x -> concat('\\\\x', lower(hex(x))), $)"),
        arrays("box", 1, |rng| format!("{},{}", point(rng), point(rng)), &["{}"]),
        arrays("time", 1, time, &["{24:00:00}"]),
        arrays("interval", 1, interval, &["{NULL,1 day}"]).postgres(&format!(
            "coalesce((SELECT jsonb_agg(CASE WHEN i IS NOT NULL THEN {} END ORDER BY n) \
             FROM unnest($) WITH ORDINALITY u(i, n)), '[]')",
            OF_INTERVAL.replace('$', "i")
        )),
        arrays("point", 1, point, &["{NULL,\"(1,2)\"}"]).postgres(
            "coalesce((SELECT jsonb_agg(CASE WHEN p IS NOT NULL THEN \
             jsonb_build_array(p[0]::text, p[1]::text) END ORDER BY n) \
             FROM unnest($) WITH ORDINALITY u(p, n)), '[]')",
        ),
    ];
    all.extend(ranges("int4range", ints, &["empty", "(,)", "[1,10)", "[1,1]"]));
    all.extend(ranges("int8range", ints, &["(,5]"]));
    all.extend(ranges("numrange", ints, &["[1.5,2.50]", "(1e50,)", "[NaN,NaN]"]));
    all.extend(ranges("daterange", days, &["[infinity,)", "(,-infinity)", "[0044-03-15 BC,)"]));
    all.extend(ranges("tsrange", moments, &["[infinity,)", "(-infinity,\"2000-01-01 00:00:00\"]"]));
    all.extend(ranges("tstzrange", moments, &["(,)"]));
    all
}

fn own() -> Vec<Column> {
    let mood = |rng: &mut Rng| ["sad", "it's \"ok\"", "é", ""][rng.usize(..4)].to_owned();
    let floats = |rng: &mut Rng| {
        let lower = rng.i32(-99..99);
        format!("[{lower}.5,{}e3)", lower.abs() + 1)
    };
    vec![
        column("public.mood", &["sad", ""], mood),
        column("public.mood[]", &["{}", "{sad,\"\",NULL}"], move |rng| array(rng, 1, ',', &mood))
            .postgres("array_to_json($::text[])"),
        column("public.deep", &["1"], |rng| rng.i32(20..).to_string()),
        column("public.price", &["1.50", "NaN"], |rng| number(rng, 8, 2)),
        column("public.tags", &["{}", "{a,NULL}"], |rng| array(rng, 1, ',', &text))
            .postgres("array_to_json($)"),
        column("public.price[]", &["{1.50,NaN}"], |rng| {
            array(rng, 1, ',', &|rng| number(rng, 8, 2))
        })
        .postgres("array_to_json($::text[])"),
        column("public.floats", &["empty", "[1e23,)", "(,)"], floats),
        column("public.floatses", &["{}", "{(,1),[2,3)}"], move |rng| {
            format!("{{{}}}", floats(rng))
        }),
        column(
            "public.several",
            &["(,,,,,,)", "(1,\"\",,,,,)", "(,\"x,\"\"y\",3.50,,{},empty,sad)"],
            composite,
        ),
        column("public.several[]", &["{}", "{NULL}"], |rng| array(rng, 1, ',', &composite))
            .postgres("array_to_json($::text[])"),
    ]
}

/// Those that the server has: each is said that is not there.
fn of_extensions(client: &mut Client) -> Vec<Column> {
    let is_there = |name: &str, client: &mut Client| {
        let sql = format!("CREATE EXTENSION IF NOT EXISTS {name} SCHEMA public");
        let made = client.batch_execute(&sql);
        if made.is_err() {
            println!("SKIPPED: this Postgres has no extension `{name}`");
        }
        made.is_ok()
    };
    let mut all = Vec::new();
    if is_there("hstore", client) {
        all.push(
            column("public.hstore", &["", "a=>1, b=>NULL", "\"\"=>\"\\\"\\\\\""], hstore)
                .postgres("public.hstore_to_jsonb($)"),
        );
        all.push(arrays("public.hstore", 1, hstore, &["{\"a=>1\",NULL,\"\"}"]));
    }
    if is_there("ltree", client) {
        let path = |rng: &mut Rng| format!("{}.{}", word(rng), word(rng));
        all.push(column("public.ltree", &["", "a.b_1.C"], path));
        all.push(column("public.ltxtquery", &["a & !b*@"], |_| "x | y".to_owned()));
        all.push(arrays("public.ltree", 1, path, &["{}", "{a.b,NULL}"]));
    }
    if is_there("citext", client) {
        all.push(column("public.citext", &["", "Aa"], text));
        all.push(arrays("public.citext", 1, text, &["{A,a,NULL}"]));
    }
    if is_there("cube", client) {
        all.push(column("public.cube", &["(1,2),(3,4)"], |rng| format!("({})", rng.i32(..))));
    }
    if is_there("seg", client) {
        all.push(column("public.seg", &["1 .. 2", "~3"], |_| "5 .. 6".to_owned()));
    }
    if is_there("isn", client) {
        all.push(column("public.isbn13", &["978-0-393-04002-9"], |_| "9780393040029".to_owned()));
        all.push(
            column("public.isbn13[]", &["{978-0-393-04002-9,NULL}"], |_| "{}".to_owned())
                .postgres("array_to_json($::text[])"),
        );
    }
    if is_there("postgis", client) {
        all.push(column("public.geometry", &["POINT EMPTY", "POINT(1.5 -0)"], geometry));
        all.push(column("public.geography", &["POINT(1 2)"], |rng| {
            format!("POINT({} {})", rng.i32(-180..180), rng.i32(-90..90))
        }));
        all.push(column("public.geometry(Point, 4326)", &["SRID=4326;POINT(1 2)"], |rng| {
            format!("SRID=4326;POINT({} 1)", rng.i32(..))
        }));
    }
    if is_there("vector", client) {
        let elements = |rng: &mut Rng| -> String {
            let all: Vec<String> = (0..3).map(|_| format!("{}.5", rng.i16(..))).collect();
            format!("[{}]", all.join(","))
        };
        let of = "array_to_json($::public.vector::float4[]::text[])";
        all.push(column("public.vector", &["[1,2.5,-3e-7]"], elements).postgres(of));
        all.push(column("public.halfvec", &["[1,2.5,-3]"], elements).postgres(of));
        all.push(column("public.sparsevec", &["{1:1.5,3:2}/5", "{}/3"], |rng| {
            format!("{{{}:{}.5}}/9", rng.u8(1..9), rng.i16(..))
        }));
    }
    all
}
