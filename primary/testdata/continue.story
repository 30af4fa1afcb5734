# The next daemon: the guest stands still until there is a lease, and is protected all
# the time. The first session resumes where the last one stood.
> continue
    hold
    = protected
> lease
    resumeguest
    connect
    = protected
> link-resumed 7
    restore
    hold
    capture 8
    = protected
> ack 8
    forget through 8
    release through 8
    = protected
