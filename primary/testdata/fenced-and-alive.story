# An operator says of this host that it is off, and it is not: it gets no lease any
# more, stands still when the last one is over, and only then says that it lives.
> start
> lease
> fenced
> wait 500ms
> wait 600ms
> applied
> lease
