#!/usr/bin/env python3
"""Shows where a guest kernel spends its time.

Reads samples of a vCPU, one a line: the instruction pointer, then (optional)
words of its kernel stack from the top, all in hexadecimal. Words that are no
kernel text are skipped, the others are taken for return addresses, which shows
a few callers too many but misses none.

    profile.py System.map SAMPLES                   flat and inclusive
    profile.py System.map SAMPLES --tree start_kernel
    profile.py System.map SAMPLES --callers memcpy
"""

import argparse
import bisect
import collections

KERNEL = 0xFFFF_8000_0000_0000


class Symbols:
    def __init__(self, path):
        text, self.bounds = [], {}
        with open(path) as lines:
            for line in lines:
                address, kind, name = line.split()[:3]
                if kind in "tTwW":
                    text.append((int(address, 16), name))
                self.bounds[name] = int(address, 16)
        text.sort()
        self.addresses = [address for address, _ in text]
        self.names = [name for _, name in text]

    def name(self, address):
        if address < KERNEL:
            return "(user, or early boot)"
        index = bisect.bisect_right(self.addresses, address) - 1
        return self.names[index] if index >= 0 else "(unknown)"

    def is_text(self, address):
        b = self.bounds
        return (
            b["_stext"] <= address < b["_etext"]
            or b["_sinittext"] <= address < b["_einittext"]
        )

    def chain(self, line):
        """From the innermost function outwards."""
        words = [int(word, 16) for word in line.split()]
        chain = [self.name(words[0])]
        if words[0] >= KERNEL:
            chain += [self.name(w - 1) for w in words[1:] if self.is_text(w)]
        return chain


def show(counter, total, rows, extra=None):
    for name, count in counter.most_common(rows):
        more = f" self {100 * extra[name] / total:6.2f} %" if extra else ""
        print(f"{100 * count / total:6.2f} %{more}  {name}")


def flat(chains, rows):
    self_time = collections.Counter(chain[0] for chain in chains)
    inclusive = collections.Counter()
    for chain in chains:
        inclusive.update(set(chain))
    print(f"{len(chains)} samples\n\nself:")
    show(self_time, len(chains), rows)
    print("\ninclusive:")
    show(inclusive, len(chains), rows, self_time)


def callers(chains, name, rows):
    found = collections.Counter()
    for chain in chains:
        if name in chain:
            at = chain.index(name)
            found[" < ".join(chain[at + 1 : at + 4])] += 1
    print(f"{100 * sum(found.values()) / len(chains):.2f} %  {name}, called from:")
    show(found, len(chains), rows)


def tree(chains, root, least):
    nodes = {}
    for chain in chains:
        chain = chain[::-1]
        if root not in chain:
            continue
        children = nodes
        previous = None
        for name in chain[chain.index(root) :]:
            if name == previous:
                continue
            previous = name
            node = children.setdefault(name, [0, {}])
            node[0] += 1
            children = node[1]

    def walk(children, depth):
        for name, (count, below) in sorted(children.items(), key=lambda c: -c[1][0]):
            share = 100 * count / len(chains)
            if share >= least:
                print(f"{share:6.2f} %  {'  ' * depth}{name}")
                walk(below, depth + 1)

    walk(nodes, 0)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("system_map")
    parser.add_argument("samples")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--tree", metavar="FUNCTION", help="what it calls")
    parser.add_argument("--least", type=float, default=0.5, help="percent, for --tree")
    parser.add_argument("--callers", metavar="FUNCTION", help="who calls it")
    args = parser.parse_args()

    symbols = Symbols(args.system_map)
    with open(args.samples) as lines:
        chains = [symbols.chain(line) for line in lines if line.strip()]
    if not chains:
        parser.error(f"no samples in {args.samples}")

    if args.tree:
        tree(chains, args.tree, args.least)
    elif args.callers:
        callers(chains, args.callers, args.rows)
    else:
        flat(chains, args.rows)


if __name__ == "__main__":
    main()
