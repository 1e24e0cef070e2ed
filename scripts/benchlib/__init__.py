"""What scripts/bench is made of.

    cli         the command line; the rounds
    contenders  how each switch is set up between two namespaces, and taken down
    overlays    the same for tunnels between two hosts
    guests      the same for guests under QEMU
    vhost       the same for vhost-user ports under DPDK's testpmd, which also measures them
    metrics     what is measured through it
    line        how far apart the CPUs were meanwhile
    load        whose work the CPUs did meanwhile
    stats       medians, spreads and ratios of the raw samples
    report      results.json, the table, the plot
    machine     what it ran on
    system      processes and namespaces; the only module that changes anything on the host

One sample is one contender set up afresh, measured once for one metric, and taken down. Contenders take turns inside
a round, in an order that rotates from round to round, so a ratio compares samples taken within the same minute: the
machine may be shared and its speed may drift. Standard library only.
"""
