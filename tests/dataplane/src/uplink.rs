//! A network namespace for the thread of a test, with routes like those of a node.
//!
//! The programs ask the kernel's routing table, so it must say the same on every machine. `lo`
//! stands for the node's interface into the pod network, as it does everywhere in these tests.

use std::cell::Cell;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, unshare};

const ROUTES: &str = "\
link set lo up
link add up0 type veth peer name up1
link set up0 up
link set up1 up
address add 172.30.0.11/16 dev up0
address add fd00:172:30::11/48 dev up0 nodad
address add 172.17.0.1/32 dev lo
address add fd00:172:17::1/128 dev lo nodad
route add 192.168.0.0/16 dev up0
route add fd00:192:168::/48 dev up0
route add 10.244.0.0/16 dev lo
route add 10.96.0.0/16 dev lo
";

thread_local! {
    static READY: Cell<bool> = const { Cell::new(false) };
}

/// Moves the thread into the namespace, once.
pub fn ensure() -> Result<()> {
    if READY.get() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace of the test's own")?;
    for path in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{path}"), "1").with_context(|| path.to_owned())?;
    }
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("iproute2")?;
    let mut input = ip.stdin.take().context("the input of ip")?;
    input.write_all(ROUTES.as_bytes())?;
    drop(input);
    ensure!(ip.wait()?.success(), "ip could not make the test's routes");
    READY.set(true);
    Ok(())
}
