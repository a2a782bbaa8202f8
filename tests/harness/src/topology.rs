//! The network of a cluster: a fabric namespace with a bridge, and one namespace per node joined to it.
//! No namespace gets a route or a link out of the machine.

use std::fmt::Write;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command;
use crate::layout::{FABRIC_IPV4, FABRIC_IPV6, Layout, NodeLayout};

/// Creates the fabric namespace with its bridge.
pub fn create_fabric(layout: &Layout) -> Result<()> {
    let fabric = layout.id.fabric();
    add_namespace(&fabric)?;
    let batch = format!(
        "link set lo up\n\
         link add br0 type bridge stp_state 0 forward_delay 0\n\
         addr add {FABRIC_IPV4}/16 dev br0\n\
         addr add {FABRIC_IPV6}/64 dev br0 nodad\n\
         link set br0 up\n"
    );
    ip_batch(&fabric, &batch)
}

/// Creates a node's namespace and joins it to the fabric.
pub fn create_node(layout: &Layout, node: &NodeLayout) -> Result<()> {
    let fabric = layout.id.fabric();
    add_namespace(&node.namespace)?;
    let port = &node.name;
    ip_batch(
        &fabric,
        &format!(
            "link add {port} type veth peer name eth0 netns {}\n\
             link set {port} master br0 up\n",
            node.namespace
        ),
    )?;
    let mut batch = String::from("link set lo up\n");
    writeln!(batch, "addr add {}/16 dev eth0", node.ipv4())?;
    // Without duplicate address detection the address can be bound at once.
    writeln!(batch, "addr add {}/64 dev eth0 nodad", node.ipv6())?;
    batch.push_str("link set eth0 up\n");
    ip_batch(&node.namespace, &batch)
}

/// Takes a node's link down or up: a cable pulled.
pub fn set_node_link(layout: &Layout, node: &NodeLayout, up: bool) -> Result<()> {
    let state = if up { "up" } else { "down" };
    ip_batch(
        &layout.id.fabric(),
        &format!("link set {} {state}\n", node.name),
    )
}

fn add_namespace(name: &str) -> Result<()> {
    command::run(Command::new("ip").args(["netns", "add", name]))
        .with_context(|| format!("cannot create network namespace {name}"))?;
    Ok(())
}

fn ip_batch(namespace: &str, batch: &str) -> Result<()> {
    command::run_with_input(
        Command::new("ip").args(["-n", namespace, "-batch", "-"]),
        batch,
    )
    .with_context(|| format!("cannot set up network namespace {namespace}:\n{batch}"))?;
    Ok(())
}
