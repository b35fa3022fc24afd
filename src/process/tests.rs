use std::sync::Arc;

use super::*;
use crate::agent::testing::HostAgent;

fn command(agent: &HostAgent, program: &str) -> Command {
    let path = ("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into());
    let defaults = Defaults { env: vec![path], ..Defaults::default() };
    Command::new(agent.client.clone(), Arc::new(defaults), program)
}

#[test]
fn echo() {
    let agent = HostAgent::start();
    let out = command(&agent, "echo").arg("hi").output().unwrap();
    assert_eq!(out.stdout, b"hi\n");
    assert!(out.status.success());
}
