//! WebSocket remote-command streaming: the server side of `kubectl exec` and `attach`, and the relay of
//! an upgraded connection to a back-end.
//!
//! Used by the agent (which ends the protocol) and by the API server (which only relays bytes). Owns no
//! listener and no TLS; it works over any upgraded connection.

pub mod handshake;
pub mod relay;
pub mod session;
pub mod status;

pub use handshake::{Accepted, HandshakeError, Protocol, accept, is_websocket_upgrade};
pub use relay::{BoxBody, RelayError, proxy_upgrade, relay};
pub use session::{SessionEnd, SessionStreams, run_session, serve_websocket};
pub use status::ExecOutcome;
