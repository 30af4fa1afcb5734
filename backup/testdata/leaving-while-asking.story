# It ends while a takeover is asked for, which may be granted yet: the log is left
# alone, and the next daemon finds what has become of it.
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
> leaves
    drop: the daemon goes down
