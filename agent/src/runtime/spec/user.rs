//! Who a container runs as: `runAsUser`, the image's `User`, /etc/passwd and /etc/group. Pure.

use super::super::image::ImageConfig;
use super::super::{ContainerSpec, RuntimeError};
use super::invalid;

/// The two files of an image; empty when it has none.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct UserDatabase {
    pub(in super::super) passwd: String,
    pub(in super::super) group: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct ResolvedUser {
    pub(in super::super) uid: u32,
    pub(in super::super) gid: u32,
    /// The primary group first, then the image's and the pod's.
    pub(in super::super) additional_gids: Vec<u32>,
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

impl UserDatabase {
    fn accounts(&self) -> impl Iterator<Item = Account<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            Some(Account { name, uid, gid })
        })
    }

    /// Name, id and members.
    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let gid = fields.nth(1)?.parse().ok()?;
            Some((name, gid, fields.next().unwrap_or_default()))
        })
    }
}

/// Resolves the user of a container.
pub(in super::super) fn resolve(
    container: &ContainerSpec,
    image: &ImageConfig,
    database: &UserDatabase,
) -> Result<ResolvedUser, RuntimeError> {
    let (user, group) = match container.run_as_user {
        Some(uid) => (uid.to_string(), String::new()),
        None => match image.user.split_once(':') {
            Some((user, group)) => (user.to_owned(), group.to_owned()),
            None => (image.user.clone(), String::new()),
        },
    };
    let (name, uid, own_gid) = account(container, &user, database)?;
    let gid = match (container.run_as_group, group.as_str()) {
        (Some(gid), _) => id(container, gid)?,
        (None, "") => own_gid,
        (None, group) => match group.parse() {
            Ok(gid) => gid,
            Err(_) => database
                .groups()
                .find(|(known, _, _)| *known == group)
                .map(|(_, gid, _)| gid)
                .ok_or_else(|| {
                    invalid(
                        container,
                        format!("unable to find group {group}: no matching entries in group file"),
                    )
                })?,
        },
    };
    let mut additional_gids = vec![gid];
    let memberships = database
        .groups()
        .filter(|(_, _, members)| {
            name.is_some_and(|name| members.split(',').any(|member| member == name))
        })
        .map(|(_, gid, _)| gid);
    let own: Result<Vec<u32>, _> = container
        .supplemental_groups
        .iter()
        .map(|gid| id(container, *gid))
        .collect();
    for gid in memberships.chain(own?) {
        if !additional_gids.contains(&gid) {
            additional_gids.push(gid);
        }
    }
    Ok(ResolvedUser {
        uid,
        gid,
        additional_gids,
    })
}

fn account<'a>(
    container: &ContainerSpec,
    user: &str,
    database: &'a UserDatabase,
) -> Result<(Option<&'a str>, u32, u32), RuntimeError> {
    let uid = if user.is_empty() {
        Some(0)
    } else {
        user.parse::<u32>().ok()
    };
    match uid {
        // A number needs no entry; without one its group is root's.
        Some(uid) => Ok(database
            .accounts()
            .find(|account| account.uid == uid)
            .map_or((None, uid, 0), |account| {
                (Some(account.name), uid, account.gid)
            })),
        None => database
            .accounts()
            .find(|account| account.name == user)
            .map(|account| (Some(account.name), account.uid, account.gid))
            .ok_or_else(|| {
                invalid(
                    container,
                    format!("unable to find user {user}: no matching entries in passwd file"),
                )
            }),
    }
}

fn id(container: &ContainerSpec, number: i64) -> Result<u32, RuntimeError> {
    u32::try_from(number).map_err(|_| {
        invalid(
            container,
            format!("{number} is not a valid user or group id"),
        )
    })
}

/// `runAsNonRoot`, with the kubelet's wording.
pub(in super::super) fn verify_non_root(
    container: &ContainerSpec,
    image: &ImageConfig,
) -> Result<(), RuntimeError> {
    if !container.run_as_non_root {
        return Ok(());
    }
    let pod = &container.pod;
    let whom = format!(
        "(pod: \"{}_{}({})\", container: {})",
        pod.name, pod.namespace, pod.uid, container.name
    );
    let user = image.user.split(':').next().unwrap_or_default();
    match (container.run_as_user, user) {
        (Some(0), _) => Err(invalid(
            container,
            format!("container's runAsUser breaks non-root policy {whom}"),
        )),
        (Some(_), _) => Ok(()),
        (None, "" | "0") => Err(invalid(
            container,
            format!("container has runAsNonRoot and image will run as root {whom}"),
        )),
        (None, user) if user.parse::<u32>().is_err() => Err(invalid(
            container,
            format!(
                "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify \
                 user is non-root {whom}"
            ),
        )),
        (None, _) => Ok(()),
    }
}
