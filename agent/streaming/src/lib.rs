//! WebSocket remote-command protocol of kubectl exec and attach, server and client side.
