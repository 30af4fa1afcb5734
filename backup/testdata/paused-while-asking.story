# Protection is paused by an owner that was only cut off from the backup, which
# asks already: it is refused, and keeps its image.
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> lost
> wait 250ms
    load
    propose takeover (generation 1, revision 2, epoch 2)
> loaded
> log pause
> applied
    warn: takeover: ownership of web: takeover by b refused: it was meant for generation 1 revision 2, the log is at generation 1 revision 3
> log protect
> wait 100ms
    reset
> hello 1 2
    welcome at epoch 2
