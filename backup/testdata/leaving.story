# This host's daemon ends in good order, and the image with it: nobody need wait for
# a backup that is not there any more. Nothing is committed after that.
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> leaves
    drop: the daemon goes down
    propose out-of-sync (generation 1, revision 2, epoch 2)
> checkpoint 3
> applied
