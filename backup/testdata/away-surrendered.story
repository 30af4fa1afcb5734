# What is promised is not to take silence for a failure: a guest that is given up is
# taken at once.
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> away 5s
    agree to wait 5s
> log surrender 2
    drop: the guest was surrendered
    load
    propose takeover (generation 1, revision 3, epoch 2)
