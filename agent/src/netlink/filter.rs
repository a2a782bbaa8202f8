//! Looking for filters of ours on a device's clsact qdisc.

use futures::TryStreamExt;

use super::{Context, Netlink, NetlinkError, errno};

impl Netlink {
    /// Whether the ingress of the device has a filter of that priority.
    pub async fn has_ingress_filter(
        &self,
        index: u32,
        priority: u16,
    ) -> Result<bool, NetlinkError> {
        let device = i32::try_from(index).expect("the kernel's own indexes are positive");
        let mut filters = self.handle.traffic_filter(device).get().ingress().execute();
        loop {
            match filters.try_next().await {
                Ok(Some(filter)) if filter.header.info >> 16 == u32::from(priority) => {
                    return Ok(true);
                }
                Ok(Some(_)) => {}
                Ok(None) => return Ok(false),
                // There is no such qdisc.
                Err(error) if matches!(errno(&error), Some(libc::EINVAL | libc::ENOENT)) => {
                    return Ok(false);
                }
                Err(source) => return Err(source).context("list the filters of interface", index),
            }
        }
    }
}
