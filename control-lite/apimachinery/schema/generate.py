#!/usr/bin/env python3
"""Writes kubernetes.schema from the Go types of the Kubernetes API.

Facts only: field numbers, names, types, optionality, merge keys and list types. No text is taken over.
Usage: generate.py API_REPOSITORY APIMACHINERY_REPOSITORY TAG > kubernetes.schema
(clones of github.com/kubernetes/api and github.com/kubernetes/apimachinery)
"""
import re
import subprocess
import sys

API, MACHINERY, TAG = sys.argv[1:4]
# package name -> (repository, path)
PACKAGES = {
    "meta": (MACHINERY, "pkg/apis/meta/v1", ["types.go"]),
    "core": (API, "core/v1", ["types.go"]),
    "apps": (API, "apps/v1", ["types.go"]),
    "discovery": (API, "discovery/v1", ["types.go"]),
    "coordination": (API, "coordination/v1", ["types.go"]),
    "events": (API, "events/v1", ["types.go"]),
    "autoscaling": (API, "autoscaling/v1", ["types.go"]),
    "networking": (API, "networking/v1", ["types.go"]),
    "policy": (API, "policy/v1", ["types.go"]),
    "authentication": (API, "authentication/v1", ["types.go"]),
}
ALIAS = {"metav1": "meta", "v1": None, "corev1": "core", "appsv1": "apps"}
# Messages with an encoding of their own.
SPECIAL = {
    "metav1.Time": "Time", "meta.Time": "Time", "metav1.MicroTime": "MicroTime", "meta.MicroTime": "MicroTime",
    "meta.Duration": "Duration", "metav1.Duration": "Duration",
    "resource.Quantity": "Quantity", "intstr.IntOrString": "IntOrString",
    "runtime.RawExtension": "RawExtension", "meta.FieldsV1": "FieldsV1",
    "types.UID": "string", "types.NamespacedName": "string", "types.NodeName": "string",
}
PRIMITIVE = {"string", "bool", "int32", "int64", "uint8", "byte", "float64", "int", "uint32", "uint64"}
ROOTS = {
    "core": ["Namespace", "Node", "Pod", "Service", "Endpoints", "ConfigMap", "Secret", "ServiceAccount",
             "Event", "ReplicationController", "Binding", "PodTemplate"],
    "discovery": ["EndpointSlice"],
    "coordination": ["Lease"],
    "events": ["Event"],
    "apps": ["Deployment", "ReplicaSet"],
    "autoscaling": ["Scale"],
    "networking": ["NetworkPolicy"],
    "policy": ["Eviction"],
    "authentication": ["TokenRequest"],
    "meta": ["DeleteOptions", "Status", "CreateOptions", "UpdateOptions", "PatchOptions"],
}
LISTS = True


def source(package):
    repository, path, files = PACKAGES[package]
    return "\n".join(
        subprocess.run(["git", "-C", repository, "show", f"{TAG}:{path}/{name}"], check=True,
                       capture_output=True, text=True).stdout for name in files)


structs, aliases, enums, wrappers = {}, {}, {}, {}
for package in PACKAGES:
    text = source(package)
    for m in re.finditer(r"^type (\w+) struct \{\n(.*?)^\}", text, re.S | re.M):
        structs[f"{package}.{m[1]}"] = m[2]
    for m in re.finditer(r"((?:^\s*//.*\n)*)^type (\w+) (=?\s*[\w\[\]\.\*]+)\s*$", text, re.M):
        name, target = m[2], m[3]
        if target.startswith("struct"):
            continue
        aliases[f"{package}.{name}"] = (target, "+enum" in m[1])
    for m in re.finditer(r"^\s*(\w+)\s+(\w+)\s*=\s*\"([^\"]*)\"", text, re.M):
        enums.setdefault(f"{package}.{m[2]}", []).append(m[3])


def resolve(package, gotype):
    """Go type -> schema type text."""
    if gotype.startswith("*"):
        return "*" + resolve(package, gotype[1:])
    if gotype == "[]byte":
        return "bytes"
    if gotype.startswith("[]"):
        return "[]" + resolve(package, gotype[2:])
    if m := re.match(r"map\[(\w+)\](.+)", gotype):
        return "{}" + resolve(package, m[2])
    if gotype in PRIMITIVE:
        return gotype
    if "." in gotype:
        if gotype in SPECIAL:
            return SPECIAL[gotype]
        prefix, name = gotype.split(".")
        if prefix in ("v1", "metav1"):
            candidates = ["core", "meta"] if prefix == "v1" else ["meta"]
        else:
            candidates = [ALIAS.get(prefix, prefix)]
        for candidate in candidates:
            if f"{candidate}.{name}" in structs or f"{candidate}.{name}" in aliases:
                return resolve(candidate, name)
        raise SystemExit(f"unknown type {gotype} in {package}")
    full = f"{package}.{gotype}"
    if full in SPECIAL:
        return SPECIAL[full]
    if full in structs:
        return full
    if full in aliases:
        target, is_enum = aliases[full]
        resolved = resolve(package, target.lstrip("= "))
        if resolved == "string":
            return f"string:{full}"
        return resolved
    raise SystemExit(f"unknown type {gotype} in {package}")


def fields(full):
    package = full.split(".")[0]
    out, comment = [], []
    for line in structs[full].splitlines():
        line = line.strip()
        if line.startswith("//"):
            comment.append(line[2:].strip())
            continue
        m = re.match(r"(?:(\w+)\s+)?([\w\.\[\]\*]+)\s+`(.*)`", line)
        if not m:
            if not line:
                comment = []
            continue
        tags = dict(re.findall(r'(\w+):"([^"]*)"', m[3]))
        gotype, json = m[2], tags.get("json", "")
        name, *options = json.split(",")
        if gotype.endswith("TypeMeta"):
            comment = []
            continue
        number = tags["protobuf"].split(",")[1] if "protobuf" in tags else "0"
        text = resolve(package, gotype)
        flags = []
        if "inline" in options:
            flags.append("inline")
            name = name or (m[1] or gotype.split(".")[-1])
        if "omitempty" in options:
            flags.append("omitempty")
        if "patchMergeKey" in tags:
            flags.append("key=" + tags["patchMergeKey"])
        if "patchStrategy" in tags:
            flags.append("strategy=" + tags["patchStrategy"].replace(",", "+"))
        if any(c.startswith("+required") for c in comment) or (
                "omitempty" not in options and "inline" not in options
                and not any(c.startswith("+optional") for c in comment)):
            flags.append("required")
        listtype = [c for c in comment if c.startswith("+listType=")]
        if listtype:
            flags.append("list=" + listtype[0].split("=")[1])
            keys = [c.split("=")[1] for c in comment if c.startswith("+listMapKey=")]
            if keys:
                flags.append("keys=" + "+".join(keys))
        if any(c.startswith("+structType=atomic") or c.startswith("+mapType=atomic") for c in comment):
            flags.append("atomic")
        out.append((name, number, text, flags))
        comment = []
    return out


seen, order, queue = set(), [], []
for package, names in ROOTS.items():
    queue += [f"{package}.{name}" for name in names]
used_enums = set()
while queue:
    full = queue.pop(0)
    if full in seen:
        continue
    seen.add(full)
    order.append(full)
    for _, _, text, _ in fields(full):
        base = re.sub(r"^(\*|\[\]|\{\})+", "", text)
        if base.startswith("string:"):
            used_enums.add(base[7:])
        elif "." in base:
            queue.append(base)

print(f"# Generated by generate.py from the Kubernetes API at {TAG}: facts only, see that file.")
print("# TYPE            a message: one line per field: json-name number type flags")
print("# =TYPE values    a string type with its constants (! before values: a closed set)")
for name in sorted(used_enums):
    closed = "!" if aliases[name][1] else ""
    values = [v for v in enums.get(name, []) if re.fullmatch(r"[\w./ -]+", v) and " " not in v]
    print(f"={name} {closed}{','.join(dict.fromkeys(values))}".rstrip())
for full in sorted(order):
    print(full)
    for name, number, text, flags in fields(full):
        print(f" {name} {number} {text} {' '.join(flags)}".rstrip())
