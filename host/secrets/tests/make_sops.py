#!/usr/bin/env python3
"""Writes the files of sops that the tests read, by an implementation of its format that shares nothing with ours:
AES-GCM of Python's `cryptography`, the data key encrypted by the genuine `age`. Run by hand; the results are kept.

    make_sops.py DIRECTORY        makes age.key, default.sops.yaml and default.sops.json in it
"""
import base64, hashlib, json, os, subprocess, sys
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

DOCUMENT = {
    "version": 1,
    "git": {"username": "bot", "token": "t0ken-of-git", "known_hosts": "example.org ssh-ed25519 AAAA\n"},
    "env": {"API_KEY": "v4lue: of # a key", "PORT": 8080, "DEBUG": True, "EMPTY": ""},
    "claude": {"settings": {"model": "opus", "limit": 1.5, "allow": ["Bash", "Edit"]}},
    "tailscale": {"authkey": "tskey-1", "tags": ["tag:a", "tag:b"]},
}
MODIFIED = "2026-01-30T12:00:00Z"


def text_of(value):
    if isinstance(value, bool):
        return "True" if value else "False"
    return repr(value) if isinstance(value, float) else str(value)


def kind_of(value):
    return {bool: "bool", int: "int", float: "float", str: "str"}[type(value)]


def encrypted(key, text, kind, path):
    if text == "":
        return ""
    iv = os.urandom(32)
    encryptor = Cipher(algorithms.AES(key), modes.GCM(iv)).encryptor()
    encryptor.authenticate_additional_data(path.encode())
    data = encryptor.update(text.encode()) + encryptor.finalize()
    b64 = lambda raw: base64.b64encode(raw).decode()
    return f"ENC[AES256_GCM,data:{b64(data)},iv:{b64(iv)},tag:{b64(encryptor.tag)},type:{kind}]"


def walk(key, node, path, mac):
    if isinstance(node, dict):
        return {name: walk(key, child, f"{path}{name}:", mac) for name, child in node.items()}
    if isinstance(node, list):
        return [walk(key, child, path, mac) for child in node]
    mac.update(text_of(node).encode())
    return encrypted(key, text_of(node), kind_of(node), path)


def yaml(node, depth=0):
    pad, out = "    " * depth, ""
    for name, child in node.items():
        if isinstance(child, dict):
            out += f"{pad}{name}:\n{yaml(child, depth + 1)}"
        elif isinstance(child, list):
            out += f"{pad}{name}:\n"
            for item in child:
                if isinstance(item, dict):
                    lines = yaml(item).splitlines()
                    out += "".join(f"{pad}    {'- ' if at == 0 else '  '}{line}\n" for at, line in enumerate(lines))
                else:
                    out += f"{pad}    - {item}\n"
        elif isinstance(child, str) and "\n" in child:
            out += f"{pad}{name}: |\n" + "".join(f"{pad}    {line}\n" for line in child.splitlines())
        elif child == "":
            out += f'{pad}{name}: ""\n'
        elif name == "lastmodified":
            out += f'{pad}{name}: "{child}"\n'
        else:
            out += f"{pad}{name}: {'[]' if child == [] else child}\n"
    return out


def main(directory):
    key_path = os.path.join(directory, "age.key")
    if not os.path.exists(key_path):
        subprocess.run(["age-keygen", "-o", key_path], check=True, capture_output=True)
    recipient = subprocess.run(["age-keygen", "-y", key_path], check=True, capture_output=True, text=True).stdout.strip()
    for name in ("default.sops.yaml", "default.sops.json"):
        key, mac = os.urandom(32), hashlib.sha512()
        document = walk(key, DOCUMENT, "", mac)
        sealed = subprocess.run(["age", "-a", "-r", recipient], input=key, check=True, capture_output=True).stdout.decode()
        document["sops"] = {
            "kms": [], "gcp_kms": [], "azure_kv": [], "hc_vault": [],
            "age": [{"recipient": recipient, "enc": sealed}],
            "lastmodified": MODIFIED,
            "mac": encrypted(key, mac.hexdigest().upper(), "str", MODIFIED),
            "pgp": [],
            "unencrypted_suffix": "_unencrypted",
            "version": "3.8.1",
        }
        with open(os.path.join(directory, name), "w") as out:
            out.write(yaml(document) if name.endswith("yaml") else json.dumps(document, indent="\t") + "\n")


main(sys.argv[1])
