//! A connection that can be torn while everything else goes on.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::ExitCode;

use crate::arguments::Arguments;
use crate::support::proxy::{Direction, Flow, Proxy};

pub fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    let (listen, to) = (address(arguments, "listen")?, address(arguments, "to")?);
    let proxy = Proxy::between(listen, to).map_err(|e| format!("listen at {listen}: {e}"))?;
    let file = arguments.text("orders")?;
    // Written to as well, by nobody: so it does not end when a writer closes it.
    let orders = OpenOptions::new().read(true).write(true).open(file);
    let orders = orders.map_err(|e| format!("open {file}: {e}"))?;
    let file = arguments.text("address")?;
    fs::write(file, format!("{}\n", proxy.address())).map_err(|e| format!("write {file}: {e}"))?;
    for order in BufReader::new(orders).lines() {
        let order = order.map_err(|e| format!("read an order: {e}"))?;
        let flow = match order.as_str() {
            "pass" => Flow::Pass,
            "tear" => Flow::Tear,
            "lose" => Flow::Lose,
            "page" => Flow::Page,
            _ => return Err(format!("`{order}` is no order")),
        };
        let to_server = if flow == Flow::Page { flow } else { Flow::Pass };
        proxy.set(Direction::ToServer, to_server);
        proxy.set(Direction::ToClient, flow);
        eprintln!("from now on: {order}; {} connections so far", proxy.connections());
    }
    Ok(ExitCode::SUCCESS)
}

fn address(arguments: &Arguments, name: &str) -> Result<SocketAddr, String> {
    let text = arguments.text(name)?;
    text.parse().map_err(|_| format!("--{name} `{text}` is not IP:PORT"))
}
