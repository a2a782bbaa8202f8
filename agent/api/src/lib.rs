//! Protocol of the agent's own unix socket (CNI and debugging).
